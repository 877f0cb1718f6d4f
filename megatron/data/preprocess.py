"""From text files to token files: read, encode in parallel, write in the order of the input.

The bytes written depend on the inputs, the tokenizer and the flags, never on the number of workers. Nothing is seen
under the final names before all of it is written. Knows nothing of samples.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from megatron.data.document_reader import (
    BadRecord,
    Chunk,
    check_inputs,
    parse_chunk,
    read_chunks,
)
from megatron.data.indexed_dataset import (
    IdArray,
    IndexedDataset,
    IndexedDatasetBuilder,
    bin_path,
    id_dtype,
    idx_path,
)
from megatron.data.ordered_map import ordered_map
from megatron.data.permutation import Permutation
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.options import option, require
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

NUM_NAMED = 5  # bad records that are named one by one; the others are counted
SHUFFLE_DOCUMENTS = 4096  # gathered at a time

Splitter = Callable[[str], list[str]]


@dataclass(frozen=True)
class PreprocessConfig:
    """What is read and how it is written; with the tokenizer's flags, all of tools/preprocess_data.py."""

    input: tuple[str, ...] = option(
        (), ".jsonl, .json (one object a line), these as .gz or .zst, and .parquet", metavar="FILE"
    )
    output_prefix: str | None = option(
        None, "files are PREFIX_KEY_document.bin and .idx", metavar="PREFIX"
    )
    json_keys: tuple[str, ...] = option(
        ("text",), "keys or columns that hold text; an output for each", metavar="KEY"
    )
    append_eod: bool = option(False, "end every document with the end-of-document id")
    split_sentences: bool = option(
        False, "one item a sentence (nltk); files are named PREFIX_KEY_sentence"
    )
    lang: str = option("english", "language of nltk's sentence splitter, if its data is installed")
    shuffle: bool = option(
        False, "write the documents in a random order; needs twice the space while it runs"
    )
    seed: int = option(1234, "of --shuffle")
    strict: bool = option(False, "stop at the first line that cannot be used, instead of skipping")
    workers: int = option(1, "processes that encode")
    chunk_size: int | None = option(
        None, "most documents handed to a worker at a time (default: about 1 MB)"
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

    def prefix_of(self, key: str) -> str:
        """Name the output of a key."""
        level = "sentence" if self.split_sentences else "document"
        return f"{self.output_prefix}_{key}_{level}"


@dataclass
class EncodedTexts:
    """The documents of one chunk under one key, ready to be written."""

    ids: IdArray
    sizes: list[int]  # ids of each item
    items_per_document: list[int]
    num_empty: int


@dataclass
class EncodedChunk:
    """What a worker makes of a chunk."""

    path: Path
    position: int
    num_read: int
    num_blank: int
    num_bytes: int  # of text, UTF-8
    bad: Counter[str]
    named: list[BadRecord]
    texts: dict[str, EncodedTexts]


@dataclass
class Summary:
    """Counts of a whole run. For each key: num_read = documents + empty + bad + blank."""

    num_read: int = 0
    num_blank: int = 0
    num_bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def describe(self, key: str) -> str:
        """Say in one line what became of every record under a key."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.bad.most_common())
        bad = f"{self.bad.total():,} bad" + (f" ({reasons})" if reasons else "")
        return (
            f"{self.num_read:,} records = {self.documents[key]:,} documents + {self.empty[key]:,} empty + "
            f"{bad} + {self.num_blank:,} blank; {self.tokens[key]:,} tokens"
        )


@dataclass(frozen=True)
class ChunkEncoder:
    """Parses and encodes one chunk; what each worker runs."""

    tokenizer: Tokenizer
    keys: tuple[str, ...]
    append_eod: bool
    splitter: Splitter | None

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        records = parse_chunk(chunk, self.keys)
        texts = [text for key in self.keys for text in records.texts[key]]
        return EncodedChunk(
            path=chunk.path,
            position=chunk.position,
            num_read=records.num_read,
            num_blank=records.num_blank,
            num_bytes=sum(len(text.encode()) for text in texts),
            bad=Counter(record.reason for record in records.bad),
            named=records.bad[:NUM_NAMED],
            texts={key: self._encode(records.texts[key]) for key in self.keys},
        )

    def _encode(self, texts: list[str]) -> EncodedTexts:
        pieces = [self.splitter(text) for text in texts] if self.splitter else [[t] for t in texts]
        encoded = iter(self.tokenizer.tokenize_batch(list(itertools.chain(*pieces))))
        dtype = id_dtype(self.tokenizer.vocab_size)
        flat = array(dtype.char)
        sizes: list[int] = []
        counts: list[int] = []
        for parts in pieces:
            items = [ids for ids in itertools.islice(encoded, len(parts)) if ids]
            if not items:
                continue
            if self.append_eod:
                items[-1].append(self.tokenizer.eod)
            for ids in items:
                flat.extend(ids)
                sizes.append(len(ids))
            counts.append(len(items))
        return EncodedTexts(np.asarray(flat, dtype), sizes, counts, len(texts) - len(counts))


def preprocess(
    config: PreprocessConfig,
    tokenizer: Tokenizer,
    *,
    on_progress: Callable[[int], None] = lambda num_bytes: None,
) -> Summary:
    """Write PREFIX_KEY_document.{bin,idx} for every key; on_progress is told of input bytes as they are done.

    Raises DataError for input that cannot be read, for a bad record with `strict`, and where no document is left.
    """
    paths = [Path(path) for path in config.input]
    check_inputs(paths)
    splitter = sentence_splitter(config.lang) if config.split_sentences else None
    encoder = ChunkEncoder(tokenizer, config.json_keys, config.append_eod, splitter)
    dtype = id_dtype(tokenizer.vocab_size)
    try:
        with contextlib.ExitStack() as stack:
            builders = {
                key: stack.enter_context(IndexedDatasetBuilder(_first_output(config, key), dtype))
                for key in config.json_keys
            }
            chunks = itertools.chain.from_iterable(
                read_chunks(path, config.json_keys, max_records=config.chunk_size) for path in paths
            )
            encoded = ordered_map(encoder, chunks, workers=config.workers)
            stack.enter_context(contextlib.closing(encoded))
            summary = _write(encoded, builders, config.strict, on_progress)
            if not any(summary.documents.values()):
                raise DataError(
                    f"no document in {', '.join(config.input)}: {summary.describe(config.json_keys[0])}"
                )
            for builder in builders.values():
                builder.finalize()
        if config.shuffle:
            for key in config.json_keys:
                _shuffle(_first_output(config, key), config.prefix_of(key), config.seed)
    except OSError as error:
        raise DataError(
            f"{error.filename or config.output_prefix}: {error.strerror}; the output is not complete"
        ) from error
    return summary


def _write(
    encoded: Iterable[EncodedChunk],
    builders: dict[str, IndexedDatasetBuilder],
    strict: bool,
    on_progress: Callable[[int], None],
) -> Summary:
    """Append every chunk to the outputs and count what became of its records."""
    summary = Summary()
    positions: Counter[Path] = Counter()
    for chunk in encoded:
        if strict and chunk.named:
            raise DataError(f"{chunk.named[0]}; fix it, or leave out --strict to skip such records")
        for record in chunk.named[: max(NUM_NAMED - summary.bad.total(), 0)]:
            logger.warning("skipped %s", record)
        summary.num_read += chunk.num_read
        summary.num_blank += chunk.num_blank
        summary.num_bytes += chunk.num_bytes
        summary.bad += chunk.bad
        for key, texts in chunk.texts.items():
            builders[key].add_items(texts.ids, texts.sizes, texts.items_per_document)
            summary.documents[key] += len(texts.items_per_document)
            summary.empty[key] += texts.num_empty
            summary.tokens[key] += len(texts.ids)
        on_progress(chunk.position - positions[chunk.path])
        positions[chunk.path] = chunk.position
    return summary


def _first_output(config: PreprocessConfig, key: str) -> str:
    """Name what is written first: the output, or with --shuffle the documents in the order of the input."""
    return config.prefix_of(key) + (".unshuffled" if config.shuffle else "")


def _shuffle(unshuffled: str, prefix: str, seed: int) -> None:
    """Write the documents of one token file to another in random order, then remove the first."""
    source = IndexedDataset(unshuffled)
    try:
        with IndexedDatasetBuilder(prefix, source.dtype) as builder:
            shuffle_documents(source, builder, seed)
            builder.finalize()
    finally:
        bin_path(unshuffled).unlink()
        idx_path(unshuffled).unlink()


def shuffle_documents(source: IndexedDataset, builder: IndexedDatasetBuilder, seed: int) -> None:
    """Append the documents of `source` in the order of a permutation keyed by seed and their number.

    Reads `source` at random, so it should fit the page cache or lie on a fast disk; memory stays flat.
    """
    order = Permutation(max(source.num_documents, 1), seed, "shuffle documents")
    for start in range(0, source.num_documents, SHUFFLE_DOCUMENTS):
        stop = min(start + SHUFFLE_DOCUMENTS, source.num_documents)
        ids, items = [], []
        for document in order.map(np.arange(start, stop)):
            begin, end = source.document_start(document), source.document_start(document + 1)
            ids.append(source.tokens[begin:end])
            items.append(np.arange(*source.document_items[document : document + 2]))
        sizes = source.sizes[np.concatenate(items)]
        builder.add_items(np.concatenate(ids), sizes, [len(numbers) for numbers in items])


def sentence_splitter(lang: str) -> Splitter:
    """Give nltk's sentence splitter, trained for a language if that data is installed, else its general rules."""
    try:
        from nltk.tokenize import punkt
    except ImportError:
        raise DataError("--split-sentences needs: pip install nltk") from None
    try:
        return punkt.PunktTokenizer(lang).tokenize
    except LookupError:
        logger.warning(
            "nltk has no sentence data for %s here: splitting by its general rules, which know no abbreviations",
            lang,
        )
        return punkt.PunktSentenceTokenizer().tokenize
