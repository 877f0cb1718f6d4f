"""Token files: the MMIDIDX pair `PREFIX.bin` (ids, back to back) and `PREFIX.idx` (where each item lies).

The format is Megatron-LM's, byte for byte. An item is one document, unless documents were split into sentences.
All numbers are little-endian, nothing is padded:

    .idx  0   9 bytes  magic "MMIDIDX\\0\\0"         18        u64     N, items
          9   u64      version 1                    26        u64     D, documents + 1
          17  u8       code of the id type          34        i32[N]  sizes in ids
                                                    34 + 4N   i64[N]  pointers, byte offsets in .bin
                                                    34 + 12N  i64[D]  item that starts each document; last is N

Opening maps both files and checks all that costs no pass over them; `verify` makes the pass. Beside them lie
PREFIX.sha256 and, if asked for, PREFIX.provenance.arrow. Knows nothing of tokenizers, samples or torch.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import mmap
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron.data.checksum import HashedFile, checksum_path, format_checksums, hash_file
from megatron.data.opened_file import PositionedReader, map_file, page_by_page
from megatron.data.publish import open_locked, publish, sync
from megatron.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, items, documents + 1
VERSION = 1
# One type for each width, so that a damaged code never fits the length of .bin. Codes 2 and 3 are signed types too
# narrow for ids, 6 and 7 floats; no Megatron writes ids as any of them.
TYPE_CODES = {1: "<u1", 4: "<i4", 5: "<i8", 8: "<u2"}
MAX_ITEM_SIZE = 2**31 - 1  # sizes are i32
CHUNK = 1 << 20  # items looked at in one go, so that memory does not grow with the dataset
COPY_BYTES = 4 << 20

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

    def document_offsets(self) -> npt.NDArray[np.int64]:
        """Give where every document starts in `tokens`, and the end: int64 [documents + 1], 8 bytes each."""
        ends = np.append(self.pointers, self.num_tokens * self.dtype.itemsize)
        return ends[self.document_items] // self.dtype.itemsize

    def verify(self) -> None:
        """Read the whole index and raise DataError at the first entry that contradicts the others."""
        path = idx_path(self.prefix)
        expected = 0
        for start, sizes, pointers in self._chunks():
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

    def _chunks(self) -> Iterator[tuple[int, IdArray, IdArray]]:
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


class IndexedDatasetBuilder:
    """Writes a token file: nothing is seen under the final names until `finalize`.

    Ids go to PREFIX.bin.tmp as they come, the index to unnamed files beside it, so memory stays flat. As a context
    manager it aborts, leaving nothing, unless `finalize` was called.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike) -> None:
        """Start PREFIX.bin and PREFIX.idx with ids of `dtype` (see `id_dtype`)."""
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._code = _type_code(self.dtype)
        self._bin_path = Path(f"{prefix}.bin.tmp")
        self._idx_path = Path(f"{prefix}.idx.tmp")
        self._checksum_path = Path(f"{prefix}.sha256.tmp")
        folder = self._bin_path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._bin = HashedFile(open_locked(self._bin_path))
        self._sizes: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by abort
        self._document_items: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._document_items.write(bytes(8))
        self._files: list[tuple[Path, Path]] = []  # temporary, final, in the order of publishing
        self._stale: list[Path] = []
        self.num_items = 0
        self.num_documents = 0
        self.num_tokens = 0
        self._is_open = True

    def __enter__(self) -> IndexedDatasetBuilder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def add_document(self, ids: Sequence[int] | IdArray) -> None:
        """Append one document of one item."""
        array = np.asarray(ids)
        self.add_items(array, [len(array)], [1])

    def add_items(
        self,
        ids: IdArray,
        sizes: Sequence[int] | IdArray,
        items_per_document: Sequence[int] | IdArray,
    ) -> None:
        """Append whole documents: their ids back to back, ids of each item, items of each document."""
        sizes = np.asarray(sizes, np.int64)
        counts = np.asarray(items_per_document, np.int64)
        assert sizes.sum() == len(ids) and counts.sum() == len(sizes)
        if len(sizes) and sizes.max() > MAX_ITEM_SIZE:
            raise DataError(
                f"a document of {sizes.max()} tokens: the format holds at most {MAX_ITEM_SIZE}; split it"
            )
        self._bin.write(self._narrow(ids).data)
        self._sizes.write(sizes.astype("<i4").tobytes())
        self._document_items.write((self.num_items + np.cumsum(counts)).astype("<i8").tobytes())
        self.num_items += len(sizes)
        self.num_documents += len(counts)
        self.num_tokens += len(ids)

    def add_dataset(
        self, dataset: IndexedDataset, on_bytes: Callable[[int], None] = lambda num_bytes: None
    ) -> None:
        """Append all documents of another token file of the same id type, copying files, not arrays."""
        if dataset.dtype != self.dtype:
            raise DataError(
                f"{dataset.prefix} holds {dataset.dtype.name} ids, {self.prefix} {self.dtype.name}: they come from "
                "tokenizers of different size; preprocess them with the same one"
            )
        with bin_path(dataset.prefix).open("rb") as payload:
            while piece := payload.read(COPY_BYTES):
                self._bin.write(piece)
                on_bytes(len(piece))
        for _, sizes, _ in dataset._chunks():
            self._sizes.write(sizes.tobytes())
        for start in range(1, len(dataset.document_items), CHUNK):
            items = dataset.document_items[start : start + CHUNK]
            self._document_items.write((items + self.num_items).tobytes())
        self.num_items += len(dataset)
        self.num_documents += dataset.num_documents
        self.num_tokens += dataset.num_tokens

    def finalize(self, provenance: Path | None = None) -> None:
        """Write the index and the checksums, force all to disk, and publish it.

        `provenance` is a finished side file under a temporary name, to be published with them.
        """
        self.complete(provenance)
        self.publish()

    def complete(self, provenance: Path | None = None) -> None:
        """Do all of `finalize` that a full disk can refuse."""
        # Here, since it imports pyarrow, which readers do without.
        from megatron.data.provenance import provenance_path

        digests = {bin_path(self.prefix).name: self._bin.hexdigest()}
        with contextlib.closing(HashedFile(self._idx_path.open("wb"))) as index:
            index.write(
                HEADER.pack(MAGIC, VERSION, self._code, self.num_items, self.num_documents + 1)
            )
            self._sizes.seek(0)
            shutil.copyfileobj(self._sizes, index, COPY_BYTES)
            self._write_pointers(index)
            self._document_items.seek(0)
            shutil.copyfileobj(self._document_items, index, COPY_BYTES)
            sync(index.file)
            digests[idx_path(self.prefix).name] = index.hexdigest()
        sync(self._bin.file)
        files = [
            (self._checksum_path, checksum_path(self.prefix)),
            (self._bin_path, bin_path(self.prefix)),
            (self._idx_path, idx_path(self.prefix)),
        ]
        stale = [provenance_path(self.prefix)]
        if provenance is not None:
            digests[stale[0].name] = hash_file(provenance)
            files.insert(0, (provenance, stale.pop()))
        with self._checksum_path.open("wb") as file:
            file.write(format_checksums(digests).encode())
            sync(file)
        self._files, self._stale = files, stale

    def publish(self) -> None:
        """Put what is complete in its place: .idx last."""
        publish(self._files, stale=self._stale)
        self._close()

    def abort(self) -> None:
        """Drop what was written, unless it is published already."""
        if self._is_open:
            for path in (self._bin_path, self._idx_path, self._checksum_path):
                path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        self._is_open = False
        self._bin.close()
        for file in (self._sizes, self._document_items):
            with contextlib.suppress(OSError):  # an aborted one may hold what a full disk refuses
                file.close()

    def _narrow(self, ids: IdArray) -> IdArray:
        """Convert ids to the file's type; DataError if one does not fit."""
        if ids.dtype == self.dtype or not len(ids):
            return np.ascontiguousarray(ids, self.dtype)
        limits = np.iinfo(self.dtype)
        low, high = int(ids.min()), int(ids.max())
        if low < limits.min or high > limits.max:
            raise DataError(
                f"token ids {low} to {high} do not fit {self.dtype.name}, which {self.prefix} was opened with"
            )
        return np.ascontiguousarray(ids, self.dtype)

    def _write_pointers(self, index: HashedFile) -> None:
        self._sizes.seek(0)
        position = 0
        while chunk := self._sizes.read(4 * CHUNK):
            sizes = np.frombuffer(chunk, "<i4").astype(np.int64) * self.dtype.itemsize
            ends = position + np.cumsum(sizes)
            index.write((ends - sizes).astype("<i8").tobytes())
            position = int(ends[-1])


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


def _type_code(dtype: np.dtype) -> int:
    for code, name in TYPE_CODES.items():
        if np.dtype(name) == dtype:
            return code
    raise DataError(f"ids cannot be stored as {dtype.name}; uint16 and int32 are usual")
