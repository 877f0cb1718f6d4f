"""Options of what is read: token files and their blend, fill-in-the-middle, the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.option_field import derived, option, require


@dataclass(frozen=True)
class DataConfig:
    """What is read, in which proportions, and how samples are made of it."""

    seq_length: int = option(0, "tokens of a sequence", minimum=1)
    data_path: tuple[str, ...] = option(
        (), "one prefix, or weight prefix weight prefix …; shared by --split", metavar="W PREFIX"
    )
    split: str | None = option(None, "train, validation, test parts of --data-path, as 969,30,1")
    train_data_path: tuple[str, ...] = option(
        (), "as --data-path, training only", metavar="W PREFIX"
    )
    valid_data_path: tuple[str, ...] = option(
        (), "as --data-path, validation only", metavar="W PREFIX"
    )
    test_data_path: tuple[str, ...] = option((), "as --data-path, test only", metavar="W PREFIX")
    train_weighted_split_paths: tuple[str, ...] = option(
        (), '"NAME: W START:END PREFIX, W START:END PREFIX"', metavar="GROUP"
    )
    valid_weighted_split_paths: tuple[str, ...] = option(
        (), "one or more such groups, each validated by its name", metavar="GROUP"
    )
    test_weighted_split_paths: tuple[str, ...] = option(
        (), "one or more such groups", metavar="GROUP"
    )
    train_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    valid_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    test_weighted_split_paths_path: str | None = option(None, "a file that holds the groups")
    exclude_documents: tuple[str, ...] = option(
        (),
        'opt-out lists: JSON lines such as {"repo": "octocat/hello"}; such documents are not read',
        metavar="FILE",
    )
    exclude_documents_skip: tuple[str, ...] = option(
        (),
        "token files that lack the fields of the opt-out lists and are read all the same",
        metavar="PREFIX",
    )
    exclude_documents_sha256: tuple[str, ...] = derived(())  # of each list; set by whoever opens it
    num_workers: int = option(
        2, "loader processes for training data; 0 loads in the main one", minimum=0
    )
    valid_num_workers: int = option(0, "loader processes for validation data", minimum=0)
    dataloader_type: Literal["single"] = option(
        "single", "samples in the order of their index, which is already a permutation"
    )
    eod_mask_loss: bool = option(False, "no loss where the model reads an end-of-document token")
    reset_position_ids: bool = option(False, "positions start at 0 again in each document")
    reset_attention_mask: bool = option(
        False, "no token attends to another document of its sample; costs less, too"
    )
    fim_rate: float = option(
        0.0, "part of the documents that are made fill-in-the-middle", minimum=0.0, maximum=1.0
    )
    fim_spm_rate: float = option(
        0.5, "part of those in suffix-prefix-middle order", minimum=0.0, maximum=1.0
    )
    fim_split_sample: str | None = option(
        None, "token that separates the files of a repository; FIM then works file by file"
    )
    fragment_fim_rate: float = option(
        0.5, "with --fim-split-sample: part of the files permuted", minimum=0.0, maximum=1.0
    )
    eval_fim: Literal["both", "with", "without"] = option(
        "both",
        "with --fim-rate: validate and test each set NAME without FIM, with it as NAME+fim, or both",
    )

    def check(self) -> None:
        require(
            bool(self.exclude_documents) or not self.exclude_documents_skip,
            "--exclude-documents-skip says which token files --exclude-documents may pass over; give both",
        )
        modes = [
            "--data-path" if self.data_path else "",
            "--train-data-path" if self.train_data_path else "",
            "--train-weighted-split-paths"
            if self.train_weighted_split_paths or self.train_weighted_split_paths_path
            else "",
        ]
        given = [mode for mode in modes if mode]
        require(bool(given), "no training data: give --data-path PREFIX (without .bin)")
        require(
            len(given) == 1,
            f"{' and '.join(given)} both name training data; keep one",
        )
        require(
            self.split is None or bool(self.data_path),
            "--split cuts --data-path; the other data options name each set themselves",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer, from which files."""

    tokenizer_type: Literal[
        "TokenizerFromFile",
        "TokenizerFromFileWithFIM",
        "HuggingFaceTokenizer",
        "GPT2BPETokenizer",
        "GPT2BPETokenizerWithFIM",
        "SentencePieceTokenizer",
        "NullTokenizer",
    ] = option("TokenizerFromFile", "how text becomes ids")
    tokenizer_file: str | None = option(None, "tokenizer.json, for TokenizerFromFile")
    tokenizer_model: str | None = option(
        None, "a local folder (HuggingFaceTokenizer) or a .model file (SentencePieceTokenizer)"
    )
    vocab_file: str | None = option(None, "vocab.json, for GPT2BPETokenizer")
    merge_file: str | None = option(None, "merges.txt, for GPT2BPETokenizer")
    vocab_size: int | None = option(None, "number of ids, for NullTokenizer")
