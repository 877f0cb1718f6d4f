"""A small real corpus on disk: Python's own source, a trained tokenizer with sentinels, its datasets."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder

SENTINELS = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]
VOCAB_SIZE = 389  # odd on purpose: the padded vocabulary differs from the true one


@dataclass(frozen=True)
class Corpus:
    """Paths of the tokenizer and of the dataset prefixes."""

    tokenizer: Path
    train: Path
    valid: Path
    short: Path  # the start of train, in documents of 1 to 24 tokens


def _write(prefix: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    builder = IndexedDatasetBuilder(prefix, dtype=np.uint16)
    for text in texts:
        builder.add_document([*tokenizer.encode(text).ids, 0])
    builder.finalize()


def cut_short(source: Path, prefix: Path, first_token: int) -> None:
    """Write 4,000 tokens of a dataset, from first_token on, as documents of 1 to 24 tokens."""
    draw = np.random.default_rng(1)
    tokens = IndexedDataset(source).tokens[first_token : first_token + 4000]
    tokens = tokens[tokens != 0]
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        while len(tokens) > 24:
            length = int(draw.integers(0, 24))
            builder.add_document([*tokens[:length].tolist(), 0])
            tokens = tokens[length:]
        builder.finalize()


def make_corpus(folder: Path) -> Corpus:
    """Train the tokenizer and write both datasets into folder."""
    sources = [path.read_text() for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    texts = [text[:3000] for text in sources if len(text) > 200][:40]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=SENTINELS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "train", tokenizer, texts[4:])
    _write(folder / "valid", tokenizer, texts[:4])
    cut_short(folder / "train", folder / "short", 0)
    return Corpus(folder / "tokenizer.json", folder / "train", folder / "valid", folder / "short")
