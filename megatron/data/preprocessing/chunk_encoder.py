"""What a worker of preprocessing makes of a chunk: its records parsed, its texts encoded, what could not be used.

Knows nothing of files, nor of the order of chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from megatron.data.arrow_array import texts
from megatron.data.indexed_dataset import IdArray, id_dtype
from megatron.data.preprocessing.document_reader import Chunk, Part
from megatron.data.preprocessing.documents import Documents
from megatron.data.preprocessing.formatted import encode_formatted
from megatron.data.preprocessing.records import BadRecord, Records, parse_chunk
from megatron.tokenizer.interface import Tokenizer

NUM_NAMED = 5  # bad records that are named one by one; the others are counted

Splitter = Callable[[str], list[str]]


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of a chunk under each key, and the counts of its records."""

    part: Part
    num_input_bytes: int  # on disk
    num_read: int
    num_blank: int
    num_text_bytes: int  # UTF-8
    bad: Counter[str]
    named: list[BadRecord]
    documents: dict[str, Documents]
    num_empty: dict[str, int]  # records whose text gives no ids
    num_formatted: int  # records that say where their sentinels are

    @classmethod
    def of(
        cls, chunk: Chunk, records: Records, documents: dict[str, Documents], num_text_bytes: int
    ) -> EncodedChunk:
        """Count what became of the records of a chunk, of which these documents were made."""
        num_good = records.num_read - records.num_blank - len(records.bad)
        return cls(
            part=chunk.part,
            num_input_bytes=chunk.num_bytes,
            num_read=records.num_read,
            num_blank=records.num_blank,
            num_text_bytes=num_text_bytes,
            bad=Counter(record.reason for record in records.bad),
            named=records.bad[:NUM_NAMED],
            documents=documents,
            num_empty={key: num_good - len(found) for key, found in documents.items()},
            num_formatted=records.num_formatted,
        )


@dataclass(frozen=True)
class ChunkEncoder:
    """Parses and encodes one chunk."""

    tokenizer: Tokenizer
    keys: tuple[str, ...]
    fields: tuple[str, ...] = ()
    append_eod: bool = False
    splitter: Splitter | None = None
    formatted: bool = False  # sentinels where the records say; one key then, and no splitter

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        records = parse_chunk(chunk, self.keys, self.fields, formatted=self.formatted)
        num_text_bytes, documents = 0, {}
        for key in self.keys:
            # Freed key by key: a text may be large. What is not ASCII is encoded once here, not twice in the encoder.
            texts = [t if t.isascii() else t.encode() for t in records.texts.pop(key)]
            num_text_bytes += sum(map(len, texts))
            documents[key] = self._encode(texts, records.places, records.fields)
        return EncodedChunk.of(chunk, records, documents, num_text_bytes)

    def _encode(
        self,
        texts: list[str | bytes],
        places: list[list[int]],
        fields: dict[str, list[str | None]],
    ) -> Documents:
        """Encode texts into documents; one that gives no ids is left out."""
        num_items = np.ones(len(texts), np.int64)
        if self.splitter is not None:
            pieces = [self.splitter(t.decode() if isinstance(t, bytes) else t) for t in texts]
            num_items = np.array([len(items) for items in pieces], np.int64)
            texts = [item for items in pieces for item in items]
        if self.formatted:
            encoded, sizes = encode_formatted(self.tokenizer, texts, places)
        else:
            encoded, sizes = self.tokenizer.encode_batch(texts)
        is_item = sizes > 0
        owners = np.repeat(np.arange(len(num_items)), num_items)[is_item]
        num_items = np.bincount(owners, minlength=len(num_items))
        is_document = num_items > 0
        num_items, sizes = num_items[is_document], sizes[is_item]
        dtype = id_dtype(self.tokenizer.vocab_size)
        if self.append_eod:
            last_items = np.cumsum(num_items) - 1
            ids = _append_to_items(encoded, sizes, last_items, self.tokenizer.eod, dtype)
            sizes[last_items] += 1
        else:
            ids = encoded.astype(dtype, copy=False)
        return Documents(ids, sizes, num_items, provenance_columns(fields, is_document))


def _append_to_items(
    ids: IdArray,
    sizes: npt.NDArray[np.int64],
    items: npt.NDArray[np.int64],
    token: int,
    dtype: np.dtype[np.integer],
) -> IdArray:
    """Put a token at the end of each of these items."""
    result = np.empty(len(ids) + len(items), dtype)
    start = 0
    for number, end in enumerate(np.cumsum(sizes)[items].tolist()):
        result[start + number : end + number] = ids[start:end]
        result[end + number] = token
        start = end
    return result


def provenance_columns(
    fields: dict[str, list[str | None]], is_document: npt.NDArray[np.bool_]
) -> dict[str, object]:
    """Give the rows of documents as Arrow arrays, which travel between processes as they lie in memory."""
    if not fields:
        return {}
    return {name: texts([*compress(values, is_document)]) for name, values in fields.items()}
