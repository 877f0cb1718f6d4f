"""Token files to train on where none are given: source code of this machine, and a tokenizer learned from it.

Every file of source is a document. Small and quick to make:
a folder keeps it for the next run, on this machine or on another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron.benchmark.source import python_source, shorten
from megatron.data.indexed_dataset import id_dtype, idx_path
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.tokenizer.json_tokenizer import JsonTokenizer, write_definition
from megatron.tokenizer.special_tokens import EOD
from megatron.tokenizer.train import train_tokenizer

logger = get_logger(__name__)

MEGABYTES = 16.0  # of text: about 4.4 M tokens, and files of 12 MB


@dataclass(frozen=True)
class Corpus:
    """What a run reads: flags name it."""

    prefix: str
    tokenizer_file: str

    def flags(self) -> list[str]:
        """Give the data flags of a run."""
        return [
            *("--train-data-path", self.prefix),
            *("--tokenizer-type", "TokenizerFromFile", "--tokenizer-file", self.tokenizer_file),
        ]


def prepare_corpus(folder: Path, vocab_size: int, *, megabytes: float = MEGABYTES) -> Corpus:
    """Make the token file and the tokenizer of a vocabulary's size in a folder, unless they lie there."""
    corpus = Corpus(
        str(folder / f"source_{vocab_size}_text_document"),
        str(folder / f"tokenizer_{vocab_size}.json"),
    )
    if idx_path(corpus.prefix).exists():  # published last
        logger.info(f"data       from {folder}")
        return corpus
    start = time.monotonic()
    texts = shorten(python_source(), megabytes)
    definition = train_tokenizer(texts, vocab_size)
    num_ids = len(definition["model"]["vocab"])
    if num_ids < vocab_size:
        raise DataError(
            f"the Python source of this machine gives {num_ids:,} of {vocab_size:,} ids; give --data-path and "
            "--tokenizer-file, or a --data-folder that was made on another machine"
        )
    tokenizer = JsonTokenizer("bench", definition, eod=EOD)
    ids, sizes = tokenizer.encode_batch(texts)
    folder.mkdir(parents=True, exist_ok=True)
    write_definition(Path(corpus.tokenizer_file), definition)
    with IndexedDatasetBuilder(corpus.prefix, id_dtype(vocab_size)) as builder:
        for document in np.split(ids, np.cumsum(sizes)[:-1]):
            builder.add_document(np.append(document, tokenizer.eod))
        builder.finalize()
    logger.info(
        f"data       {len(texts):,} files of Python source, {len(ids):,} tokens, "
        f"made in {time.monotonic() - start:.1f} s"
    )
    return corpus
