"""Writes token files: the MMIDIDX pair of indexed_dataset.py and the checksums of both, whole or not at all.

Knows nothing of tokenizers, nor of where documents come from.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron.checksum import format_checksums, hash_file
from megatron.data.checksum import HashedFile, checksum_path
from megatron.data.indexed_dataset import (
    CHUNK,
    HEADER,
    MAGIC,
    TYPE_CODES,
    VERSION,
    IdArray,
    IndexedDataset,
    bin_path,
    idx_path,
)
from megatron.data.origin import origin_path
from megatron.data.publish import open_locked, publish, sync
from megatron.errors import DataError

MAX_ITEM_SIZE = 2**31 - 1  # sizes are i32
COPY_BYTES = 4 << 20


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
        self, dataset: IndexedDataset, on_piece: Callable[[bytes], None] = lambda piece: None
    ) -> None:
        """Append all documents of another token file of the same id type, copying files, not arrays.

        on_piece is given the content of .bin, piece by piece, as it is copied.
        """
        if dataset.dtype != self.dtype:
            raise DataError(
                f"{dataset.prefix} holds {dataset.dtype.name} ids, {self.prefix} {self.dtype.name}: they come from "
                "tokenizers of different size; preprocess them with the same one"
            )
        with bin_path(dataset.prefix).open("rb") as payload:
            while piece := payload.read(COPY_BYTES):
                self._bin.write(piece)
                on_piece(piece)
        for _, sizes, _ in dataset.chunks():
            self._sizes.write(sizes.tobytes())
        for start in range(1, len(dataset.document_items), CHUNK):
            items = dataset.document_items[start : start + CHUNK]
            self._document_items.write((items + self.num_items).tobytes())
        self.num_items += len(dataset)
        self.num_documents += dataset.num_documents
        self.num_tokens += dataset.num_tokens

    def finalize(self) -> None:
        """Write the index and the checksums, force all to disk, and publish it."""
        self.complete()
        self.publish()

    def complete(self, sides: Sequence[tuple[Path, Path]] = ()) -> None:
        """Do all of `finalize` that a full disk can refuse.

        `sides` are finished files, as (temporary, final) names, to be published with the others.
        """
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
        digests |= {final.name: hash_file(temporary) for temporary, final in sides}
        written = [final for _, final in sides]
        known = (provenance_path(self.prefix), origin_path(self.prefix))
        stale = [path for path in known if path not in written]
        files = [*sides, *files]
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


def _type_code(dtype: np.dtype) -> int:
    for code, name in TYPE_CODES.items():
        if np.dtype(name) == dtype:
            return code
    raise DataError(f"ids cannot be stored as {dtype.name}; uint16 and int32 are usual")
