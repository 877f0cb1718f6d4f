"""One index of one token file, in one file beside it: `PREFIX.membership`, `PREFIX.trace`, …

    0        8 bytes   magic "MGATTRIB"
    8        u32       version of the format, little-endian
    12       u32       H, where the arrays begin; a multiple of 4,096
    16       H - 16    a JSON object, spaces, and a newline: the header
    H …                arrays, each at a multiple of 64 bytes; the header names them

The header says of which token file the index is (`megatron.data.content`), how it was made, where each array lies
and the SHA-256 of all that follows it. A file appears whole or not at all. Knows nothing of what arrays mean.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from megatron.checksum import PIECE
from megatron.data.checksum import HashedFile
from megatron.data.content import FileContent, content_of
from megatron.data.indexed_dataset import bin_path, idx_path
from megatron.data.opened_file import PositionedReader, map_file
from megatron.data.publish import open_locked, publish, sync
from megatron.errors import DataError

MAGIC = b"MGATTRIB"
VERSION = 1
START = struct.Struct("<8sII")
PAGE = 4096
ALIGNMENT = 64  # a cache line
PER_ARRAY = 160  # bytes of header, with room to spare
OTHER_FACTS = 4 * PAGE


def index_path(prefix: str | Path, kind: str) -> Path:
    """Give the path of an index."""
    return Path(f"{prefix}.{kind}")


class Index(Protocol):
    """What an index of any kind tells of itself."""

    path: Path
    facts: dict[str, Any]
    num_bytes: int

    def verify(self, on_bytes: Callable[[int], None] = ...) -> None:
        """Read all of it, telling how much; raise DataError if it is damaged."""


class IndexWriter:
    """Writes an index array by array; nothing is seen under its name before `finish`.

    As a context manager it leaves nothing behind unless `finish` was called.
    """

    def __init__(self, prefix: str, kind: str, *, num_arrays: int) -> None:
        """Start the file. num_arrays: how many arrays it will hold, at most."""
        self.path = index_path(prefix, kind)
        self._kind, self._content = kind, content_of(prefix)
        self._temporary = Path(f"{self.path}.tmp")
        self._header_size = -(-(OTHER_FACTS + PER_ARRAY * num_arrays) // PAGE) * PAGE
        self._raw = open_locked(self._temporary)
        self._raw.write(bytes(self._header_size))
        self._file = HashedFile(self._raw)
        self._arrays: dict[str, tuple[str, int, int]] = {}  # dtype, place, bytes
        self._place = 0
        self._is_published = False

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_published:
            self._temporary.unlink(missing_ok=True)
        self._file.close()

    def begin(self, name: str, dtype: npt.DTypeLike) -> None:
        """Start the next array."""
        padding = -self._place % ALIGNMENT
        self._put(bytes(padding))
        self._arrays[name] = (np.dtype(dtype).str, self._place, 0)
        self._name = name

    def write(self, values: npt.NDArray[Any]) -> None:
        """Append values to the array that was begun last."""
        dtype, place, size = self._arrays[self._name]
        assert values.dtype.str == dtype
        if values.size:
            self._put(np.ascontiguousarray(values).data.cast("B"))
        self._arrays[self._name] = (dtype, place, size + values.nbytes)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the header with what else is to be known of the index, force all to disk and publish it."""
        header = {
            "kind": self._kind,
            "dataset": asdict(self._content),
            **facts,
            "arrays": {
                name: {"dtype": dtype, "place": place, "bytes": size}
                for name, (dtype, place, size) in self._arrays.items()
            },
            "bytes": self._place,
            "sha256": self._file.hexdigest(),
        }
        text = orjson.dumps(header)
        room = self._header_size - START.size - 1
        assert len(text) <= room, "PER_ARRAY and OTHER_FACTS are too small"
        written = START.pack(MAGIC, VERSION, self._header_size) + text.ljust(room) + b"\n"
        with self._temporary.open("r+b") as file:  # the other one only appends
            file.write(written)
            sync(file)
        sync(self._raw)
        publish([(self._temporary, self.path)])
        self._is_published = True

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._place += len(data)


class IndexFile:
    """An index opened for reading: mapped, so that opening costs the same for any size."""

    def __init__(self, path: Path) -> None:
        """Map an index; raise DataError if it is missing, damaged or of another version."""
        self.path = path
        if not path.exists():
            kind = path.suffix[1:]
            raise DataError(
                f"{path} does not exist; make it with tools/attribute.py build --kinds {kind} {path.with_suffix('')}"
            )
        self._map = map_file(path)
        if isinstance(self._map, mmap.mmap):
            self._map.madvise(mmap.MADV_RANDOM)  # a page at a time: neighbours are not of use
        self.facts, self._start = self._read_header()
        self.num_bytes = len(self._map)

    @classmethod
    def open(cls, prefix: str, kind: str) -> IndexFile:
        """Open an index of a token file. Raises DataError also if the token file is another than it was made of.

        A token file that is not there is not compared: some indexes are of use without.
        """
        index = cls(index_path(prefix, kind))
        if index.facts.get("kind") != kind:
            raise index._damaged(f"it is of kind {index.facts.get('kind')}")
        check_is_of(index.path, index.content, prefix, kind)
        return index

    @property
    def content(self) -> FileContent:
        """The token file that it was made of."""
        return FileContent(**self.facts["dataset"])

    def fact(self, name: str) -> Any:
        """Give what the header says of one thing. Raises DataError if it does not."""
        if name not in self.facts:
            raise self._damaged(f"its header does not say {name}")
        return self.facts[name]

    def array(self, name: str, shape: tuple[int, ...] = (-1,)) -> npt.NDArray[Any]:
        """Give an array as a view of the mapped file."""
        try:
            entry = self.facts["arrays"][name]
            dtype, place, size = np.dtype(entry["dtype"]), entry["place"], entry["bytes"]
            count = size // dtype.itemsize
            return np.frombuffer(self._map, dtype, count, self._start + place).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"it has no array {name} ({error})") from None

    def verify(self, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> None:
        """Read all of it; raise DataError unless it is what was written."""
        import hashlib

        digest, reader = hashlib.sha256(), PositionedReader(self.path)
        for place in range(self._start, self.num_bytes, PIECE):
            piece = reader.read(place, min(PIECE, self.num_bytes - place))
            digest.update(piece)
            on_bytes(len(piece))
        if digest.hexdigest() != self.facts["sha256"]:
            raise self._damaged(f"its SHA-256 is {digest.hexdigest()}")

    def _read_header(self) -> tuple[dict[str, Any], int]:
        if len(self._map) < START.size or self._map[: len(MAGIC)] != MAGIC:
            raise self._damaged("it does not begin as an index does")
        _, version, size = START.unpack(self._map[: START.size])
        if version != VERSION:
            raise DataError(
                f"{self.path} has version {version} of the format; only {VERSION} is known: make it again with "
                "tools/attribute.py build"
            )
        try:
            facts = orjson.loads(self._map[START.size : size])
            is_whole = len(self._map) == size + facts["bytes"] and FileContent(**facts["dataset"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise self._damaged("its header cannot be read") from None
        if not is_whole:
            raise self._damaged(f"it has {len(self._map)} bytes, not {size + facts['bytes']}")
        return facts, size

    def _damaged(self, finding: str) -> DataError:
        return DataError(
            f"{self.path} is damaged: {finding}; make it again with tools/attribute.py build, or copy it"
        )


def check_is_of(path: Path, content: FileContent, prefix: str, kind: str) -> None:
    """Raise DataError if an index was made of another content than a token file has now.

    A token file that is not there is not compared.
    """
    if not (bin_path(prefix).exists() or idx_path(prefix).exists()):
        return
    now = content_of(prefix)
    if not content.is_same(now):
        raise DataError(
            f"{path} is stale: it was made of {content.describe()}, and {prefix} is now {now.describe()}; make it "
            f"again with tools/attribute.py build --kinds {kind} {prefix}"
        )


def check_spelling(path: Path, facts: Mapping[str, Any], sha256: str) -> None:
    """Raise DataError if an index was made with another tokenizer than one of this spelling, or does not say."""
    if facts.get("spelling") != sha256:
        raise DataError(
            f"{path} is of ids of another tokenizer, by the bytes that they stand for; give the one that "
            "preprocessed the token file, or make it again with tools/attribute.py build"
        )


def check_room(path: Path, num_bytes: int) -> None:
    """Raise DataError if a disk has no room for a file of so many bytes."""
    stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize
    if free < num_bytes:
        raise DataError(
            f"{path} will have {num_bytes / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left; make room, or "
            "move the token file"
        )
