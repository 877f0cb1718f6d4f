"""Token files: the MMIDIDX pair `PREFIX.bin` (ids, back to back) and `PREFIX.idx` (where each item lies).

The format is Megatron-LM's, byte for byte. An item is one document, unless documents were split into sentences.
All numbers are little-endian, nothing is padded:

    .idx  0   9 bytes  magic "MMIDIDX\\0\\0"         18        u64     N, items
          9   u64      version 1                    26        u64     D, documents + 1
          17  u8       code of the id type          34        i32[N]  sizes in ids
                                                    34 + 4N   i64[N]  pointers, byte offsets in .bin
                                                    34 + 12N  i64[D]  item that starts each document; last is N

Opening maps both files and checks all that costs no pass over them; `verify` makes the pass. They are written by
indexed_dataset_builder.py. Knows nothing of tokenizers, samples or torch.
"""

from __future__ import annotations

import bisect
import functools
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron.data.opened_file import PositionedReader, map_file, page_by_page
from megatron.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, items, documents + 1
VERSION = 1
# One type for each width, so that a damaged code never fits the length of .bin. Codes 2 and 3 are signed types too
# narrow for ids, 6 and 7 floats; no Megatron writes ids as any of them.
TYPE_CODES = {1: "<u1", 4: "<i4", 5: "<i8", 8: "<u2"}
CHUNK = 1 << 20  # items looked at in one go, so that memory does not grow with the dataset

IdArray = npt.NDArray[np.integer]


def id_dtype(vocab_size: int | None) -> np.dtype[np.integer]:
    """Choose the type of ids as Megatron does: two bytes where the vocabulary fits."""
    return np.dtype("<u2") if vocab_size is not None and vocab_size < 65500 else np.dtype("<i4")


def bin_path(prefix: str | Path) -> Path:
    """Give the path of the ids."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Give the path of the index."""
    return Path(f"{prefix}.idx")


class IndexedDataset:
    """A token file opened for reading; costs the same for ten documents as for a billion.

    Documents lie back to back, so a sample that spans some is one part of `tokens`. Arrays are views of mapped files:
    read-only, and those of the .idx unaligned, so searching goes through `bisect`, which touches log N entries, where
    numpy.searchsorted would copy the array. Pickles as its prefix.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open PREFIX.bin and PREFIX.idx; raise DataError if they are missing or do not fit together."""
        self.prefix = str(prefix)
        index = map_file(idx_path(prefix))
        with page_by_page(index):
            dtype, num_items, num_offsets = _read_header(idx_path(prefix), index)
            position = HEADER.size
            self.dtype = dtype
            self.sizes = np.frombuffer(index, "<i4", num_items, position)
            position += 4 * num_items
            self.pointers = np.frombuffer(index, "<i8", num_items, position)
            position += 8 * num_items
            self.document_items = np.frombuffer(index, "<i8", num_offsets, position)
            self._payload = PositionedReader(bin_path(prefix))
            self._check_ends(self._payload.num_bytes)

    def __reduce__(self) -> tuple[type[IndexedDataset], tuple[str]]:
        return IndexedDataset, (self.prefix,)

    def __len__(self) -> int:
        """Count the items."""
        return len(self.sizes)

    def __getitem__(self, item: int) -> IdArray:
        return self.get(item)

    @property
    def num_tokens(self) -> int:
        """Count the ids."""
        return self._payload.num_bytes // self.dtype.itemsize

    @functools.cached_property
    def tokens(self) -> IdArray:
        """The whole .bin as one array, mapped when it is first asked for."""
        return np.frombuffer(map_file(bin_path(self.prefix)), self.dtype)

    def read(self, start: int, stop: int) -> IdArray:
        """Give tokens[start:stop] without mapping them: for parts that lie anywhere, as samples do."""
        size = self.dtype.itemsize
        return np.frombuffer(self._payload.read(start * size, (stop - start) * size), self.dtype)

    @property
    def num_documents(self) -> int:
        """Count the documents."""
        return len(self.document_items) - 1

    def get(self, item: int, offset: int = 0, length: int | None = None) -> IdArray:
        """Give `length` ids of an item from `offset` on, or all of it; a view, not a copy."""
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {self.prefix}, which has {len(self)}")
        size = int(self.sizes[item])
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise IndexError(f"ids {offset} to {offset + length} of item {item}, which has {size}")
        start = int(self.pointers[item]) // self.dtype.itemsize + offset
        return self.tokens[start : start + length]

    def document_start(self, document: int) -> int:
        """Give where a document starts in `tokens`; that of `num_documents` is the end of the last."""
        if not 0 <= document <= self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents} in {self.prefix}")
        item = int(self.document_items[document])
        if item == len(self):
            return self.num_tokens
        return int(self.pointers[item]) // self.dtype.itemsize

    def document_at(self, token: int) -> int:
        """Give the document that holds position `token` of `tokens`, in O(log documents)."""
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"token {token} of {self.prefix}, which has {self.num_tokens}")
        item = bisect.bisect_right(self.pointers, token * self.dtype.itemsize) - 1
        return bisect.bisect_right(self.document_items, item) - 1

    def verify(self) -> None:
        """Read the whole index and raise DataError at the first entry that contradicts the others."""
        path = idx_path(self.prefix)
        expected = 0
        for start, sizes, pointers in self.chunks():
            if sizes.min() < 0:
                item = start + int(np.argmax(sizes < 0))
                raise _damaged(path, f"item {item} has size {self.sizes[item]}")
            ends = expected + np.cumsum(sizes, dtype=np.int64) * self.dtype.itemsize
            starts = ends - sizes.astype(np.int64) * self.dtype.itemsize
            if not np.array_equal(starts, pointers):
                item = start + int(np.argmax(starts != pointers))
                raise _damaged(
                    path,
                    f"item {item} points at byte {self.pointers[item]} where the sizes "
                    f"before it sum to {starts[item - start]}",
                )
            expected = int(ends[-1])
        for start in range(0, self.num_documents, CHUNK):
            steps = np.diff(self.document_items[start : start + CHUNK + 1])
            if steps.min() < 0:
                document = start + int(np.argmax(steps < 0)) + 1
                raise _damaged(path, f"document {document} starts before document {document - 1}")

    def chunks(self) -> Iterator[tuple[int, IdArray, IdArray]]:
        """Give (first item, sizes, pointers) of all items, CHUNK of them at a time."""
        for start in range(0, len(self), CHUNK):
            yield start, self.sizes[start : start + CHUNK], self.pointers[start : start + CHUNK]

    def _check_ends(self, payload_size: int) -> None:
        """Check the first and last entry of each array, and the last against the length of .bin."""
        path = idx_path(self.prefix)
        first, last = int(self.document_items[0]), int(self.document_items[-1])
        if (first, last) != (0, len(self)):
            raise _damaged(
                path, f"its documents span items {first} to {last}, not 0 to {len(self)}"
            )
        end = 0
        if len(self):
            if self.pointers[0] != 0 or self.pointers[-1] < 0 or min(self.sizes[[0, -1]]) < 0:
                raise _damaged(
                    path, "its first item does not start at byte 0, or a size is negative"
                )
            end = int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize
        if end != payload_size:
            raise DataError(
                f"{bin_path(self.prefix)} has {payload_size} bytes, but {path} describes {end}: one of them is cut "
                "short or belongs to another dataset; copy both again, or run tools/preprocess_data.py again"
            )


def _read_header(path: Path, index: mmap.mmap | bytes) -> tuple[np.dtype[np.integer], int, int]:
    """Give the type of ids, N and D after checking them against the length of the file."""
    if index[: len(LEGACY_MAGIC)] == LEGACY_MAGIC:
        raise DataError(
            f"{path} is in the old 'lazy'/'cached' format (TNTIDX); run tools/preprocess_data.py on the text again"
        )
    if index[: len(MAGIC)] != MAGIC[: len(index)]:
        raise DataError(
            f"{path} is not a Megatron index: it starts with {index[:9]!r}, not {MAGIC!r}"
        )
    if len(index) < HEADER.size:
        raise _damaged(path, f"it has {len(index)} bytes, less than the header's {HEADER.size}")
    _, version, code, num_items, num_offsets = HEADER.unpack(index[: HEADER.size])
    if version != VERSION:
        raise DataError(f"{path} has version {version} of the format; only {VERSION} is known")
    if code not in TYPE_CODES:
        raise DataError(
            f"{path} has type code {code}; ids are of one of the codes {sorted(TYPE_CODES)}"
        )
    expected = HEADER.size + 12 * num_items + 8 * num_offsets
    if num_offsets < 1 or len(index) != expected:
        raise _damaged(
            path,
            f"it has {len(index)} bytes, but {num_items} items and {num_offsets - 1} documents make {expected}",
        )
    return np.dtype(TYPE_CODES[code]), num_items, num_offsets


def _damaged(path: Path, finding: str) -> DataError:
    return DataError(f"{path} is damaged: {finding}; copy it or run tools/preprocess_data.py again")
