"""Options of preprocessing: what is read, how it is encoded, and what the output is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.data.origin import CONVERSATIONS, Origin
from megatron.data.preprocessing.document_reader import Part, check_inputs, plan_parts
from megatron.data.provenance import check_fields
from megatron.data.shards import Shard
from megatron.option_field import option, require
from megatron.tokenizer.chat_template import choose_template
from megatron.tokenizer.interface import Tokenizer


@dataclass(frozen=True)
class PreprocessConfig:
    """What is read and how it is written; with the tokenizer's flags, all of tools/preprocess_data.py."""

    input: tuple[str, ...] = option(
        (), ".jsonl, .json (one object a line), these as .gz or .zst, and .parquet", metavar="FILE"
    )
    output_prefix: str | None = option(
        None, "files are PREFIX_KEY_document.bin, .idx and .sha256", metavar="PREFIX"
    )
    json_keys: tuple[str, ...] = option(
        ("text",), "keys or columns that hold text; an output for each", metavar="KEY"
    )
    messages_key: str | None = option(
        None,
        "in place of --json-keys: key or column that holds a conversation, a list of {role, content}; training then "
        "has loss on the answers only",
        metavar="KEY",
    )
    chat_template: str | None = option(
        None,
        "with --messages-key: starchat, plain, or a file of JSON (default: starchat if the tokenizer has its "
        "sentinels, else plain)",
        metavar="NAME",
    )
    provenance_keys: tuple[str, ...] = option(
        (),
        "keys or columns whose values are kept for each document, in PREFIX_KEY_document.provenance.arrow",
        metavar="KEY",
    )
    formatted: bool = option(
        False,
        "records of tools/curate.py format: the sentinels that it wrote become their ids, what else spells one is text",
    )
    append_eod: bool = option(False, "end every document with the end-of-document id")
    split_sentences: bool = option(
        False, "one item a sentence (nltk); files are named PREFIX_KEY_sentence"
    )
    lang: str | None = option(
        None,
        "with --split-sentences: language of nltk's splitter, if its data is installed (default: english)",
    )
    shuffle: bool = option(
        False, "write the documents in a random order; needs twice the space while it runs"
    )
    seed: int | None = option(None, "with --shuffle: another order (default: 1234)")
    shard: str | None = option(
        None,
        "read only the i-th of n equal shares of the input, and name the files "
        "PREFIX_KEY_document_0000i-of-0000n; tools/merge_datasets.py joins them",
        metavar="i/n",
    )
    strict: bool = option(
        False, "stop at the first record that cannot be used, instead of skipping"
    )
    workers: int = option(1, "processes that encode")
    chunk_size: int | None = option(
        None, "most documents handed to a worker at a time (default: about 1 MB, which is faster)"
    )
    dataset_impl: Literal["mmap"] = option("mmap", "the only format; accepted for Megatron's sake")

    def check(self) -> None:
        require(
            bool(self.input),
            "no --input; give .jsonl, .json, .jsonl.gz, .jsonl.zst or .parquet files",
        )
        require(
            self.output_prefix is not None,
            "no --output-prefix; files are named PREFIX_text_document.bin",
        )
        require(self.workers > 0, f"--workers is {self.workers}; give 1 or more")
        require(
            self.chunk_size is None or self.chunk_size > 0,
            f"--chunk-size is {self.chunk_size}; give 1 or more",
        )
        require(len(set(self.json_keys)) == len(self.json_keys), "--json-keys names a key twice")
        require(
            self.messages_key is None or self.json_keys == ("text",),
            "--messages-key and --json-keys both say what is read; keep one",
        )
        require(
            self.messages_key is None or not (self.split_sentences or self.formatted),
            "--split-sentences and --formatted are of texts, and --messages-key reads conversations; keep one",
        )
        require(
            self.chat_template is None or self.messages_key is not None,
            f"--chat-template {self.chat_template} is of --messages-key; add that, or leave it out",
        )
        require(
            self.lang is None or self.split_sentences,
            f"--lang {self.lang} is of --split-sentences; add that, or leave --lang out",
        )
        require(
            self.seed is None or self.shuffle,
            f"--seed {self.seed} is of --shuffle; add that, or leave --seed out",
        )
        if self.formatted:
            require(
                len(self.json_keys) == 1 and not self.split_sentences,
                "--formatted says where the sentinels of one text are; leave out --split-sentences and further "
                "--json-keys",
            )
        if self.provenance_keys:
            check_fields(self.provenance_keys)
        if self.shard is not None:
            Shard.parse(self.shard)

    @property
    def keys(self) -> tuple[str, ...]:
        """Name the keys that are read, each into a dataset of its own."""
        return self.json_keys if self.messages_key is None else (self.messages_key,)

    @property
    def language(self) -> str:
        """Name the language that sentences are split by."""
        return "english" if self.lang is None else self.lang

    @property
    def order_seed(self) -> int:
        """Give the seed of a random order of documents."""
        return 1234 if self.seed is None else self.seed

    def prefix_of(self, key: str) -> str:
        """Name the output of a key."""
        level = "sentence" if self.split_sentences else "document"
        prefix = f"{self.output_prefix}_{key}_{level}"
        return prefix if self.shard is None else Shard.parse(self.shard).name(prefix)

    def parts(self) -> list[Part]:
        """Give what is to be read; DataError for inputs that cannot be."""
        paths = [Path(path) for path in self.input]
        check_inputs(paths)
        shard = Shard() if self.shard is None else Shard.parse(self.shard)
        return plan_parts(paths, shard.number, shard.count)

    def origin(self, key: str, tokenizer: Tokenizer) -> Origin:
        """Give what decides the bytes of a key's output, but for what is in the input."""
        origin: Origin = {}
        if self.messages_key is not None:
            template = choose_template(self.chat_template, tokenizer)
            origin[CONVERSATIONS] = template.to_json()
        origin |= {
            "tokenizer": tokenizer.fingerprint(),
            "key": key,
            "json_keys": list(self.keys),
            "append_eod": self.append_eod,
            "split_sentences": self.language if self.split_sentences else None,
            "shuffle": self.order_seed if self.shuffle else None,
            "input": [[Path(path).name, Path(path).stat().st_size] for path in self.input],
            "shard": self.shard,
        }
        if self.formatted:  # not said by older versions
            origin["formatted"] = True
        return origin
