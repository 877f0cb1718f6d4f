"""Documents out of files, with all that is said beside them, and into files again.

Reading is that of megatron.data: JSON lines (plain, .gz, .zst) and Parquet, cut into parts. A record that cannot be
used is given with its place, its reason and its text, to be set aside. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol

import orjson

from megatron.curation.run.document import Document
from megatron.data.preprocessing.document_reader import (
    Chunk,
    Part,
    check_inputs,
    is_parquet,
    is_plain,
    load,
    plan_parts,
    read_chunks,
)
from megatron.data.preprocessing.parquet_rows import column_names
from megatron.data.preprocessing.records import arrow_rows, lines_of, parse_line
from megatron.data.publish import sync
from megatron.data.shards import natural_key
from megatron.errors import DataError

Format = Literal["jsonl.zst", "jsonl", "jsonl.gz", "parquet"]
JSON_FILES = tuple(f"*.{kind}{end}" for kind in ("jsonl", "json") for end in ("", ".gz", ".zst"))
READABLE = (*JSON_FILES, "*.parquet")
OWN_FILES = {"run.json", "totals.json"}  # of an output folder, beside its records
ZSTD_LEVEL = 1
PARQUET_BATCH_BYTES = 32 << 20  # of text, made into Arrow at a time
MOST_NESTED = 100  # lists and objects in each other that are written again
# Bytes of a record for each of its text, beyond which it is not decoded: six may spell one in JSON, the rest is for
# what stands beside the text.
RECORD_FACTOR = 8


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used: where it is, why, and what it holds."""

    place: str
    reason: str
    raw: str


class Source(Protocol):
    """The documents of one shard."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def is_seekable(self) -> bool:
        """Say whether it can be read from any byte on."""
        ...

    def between(self, start: int, stop: int) -> Source:
        """Give the documents that start in [start, stop) of its bytes, if it is seekable."""
        ...

    def fingerprint(self) -> str:
        """Say which bytes these are; another content gives another answer."""
        ...

    def read(self) -> Iterator[Document | BadRecord]:
        """Give the documents, the same each time."""
        ...


@dataclass(frozen=True)
class PartSource:
    """The records of a part of a file."""

    part: Part
    text_key: str = "text"
    id_key: str = "id"
    # of the file, by which records without an id are named; its last part unless given
    name: str = ""
    max_document_bytes: int | None = None  # of text; no part of the fingerprint, see `read_stage`

    @property
    def num_bytes(self) -> int:
        return self.part.stop - self.part.start

    @property
    def is_seekable(self) -> bool:
        return is_plain(self.part.path)

    def between(self, start: int, stop: int) -> PartSource:
        begin = self.part.start
        return replace(self, part=replace(self.part, start=begin + start, stop=begin + stop))

    def fingerprint(self) -> str:
        status = self.part.path.stat()
        place = f"{self.part.path.resolve()}:{self.part.start}-{self.part.stop}"
        keys = f"{self.text_key}:{self.id_key}:{self.name}"
        return f"{place}:{status.st_size}:{status.st_mtime_ns}:{keys}"

    def read(self) -> Iterator[Document | BadRecord]:
        number = 0
        for chunk in self.chunks():
            for item in self.records_of(chunk, number):
                number += 1
                if item is not None:
                    yield item

    def chunks(self) -> Iterator[Chunk]:
        """Give the records in chunks that are not parsed."""
        fields = column_names(self.part.path) if is_parquet(self.part.path) else []
        most = self.max_document_bytes
        longest = None if most is None else RECORD_FACTOR * most
        keys = [self.text_key]
        yield from map(load, read_chunks(self.part, keys, fields, max_record_bytes=longest))

    def records_of(
        self, chunk: Chunk, num_before: int = 0
    ) -> Iterator[Document | BadRecord | None]:
        """Parse a chunk, with num_before records before it in the part; a blank line is None."""
        place = self.name or self.part.path.name
        place += f"@{self.part.start}" if self.part.start else ""
        number = num_before
        for row, raw in _rows(chunk):
            number += 1
            yield None if row is None else self._document(row, f"{place}:{number}", raw)
        if chunk.num_skipped_bytes:
            # Without its size, since reasons are counted.
            reason = "too long to be decoded, see --max-document-mb"
            yield BadRecord(f"{place}:{number + 1}", reason, "")

    def _document(
        self, row: dict[str, Any] | str, place: str, raw: bytes | memoryview
    ) -> Document | BadRecord:
        if isinstance(row, str):
            return BadRecord(place, row, _spelled(row, raw))
        text = _take(row, self.text_key)
        if not isinstance(text, str):
            return BadRecord(place, no_text(self.text_key), _spelled(row, raw))
        given = _take(row, self.id_key)
        if reason := why_unwritable(row):
            return BadRecord(place, reason, _spelled(row, raw))
        return Document(place if given is None else str(given), text, row)


def no_text(key: str) -> str:
    """Give the reason of a record without text under a key."""
    return f"no text under {key!r}"


def _take(row: dict[str, Any], key: str) -> Any:
    """Take out what a key names, or a path of names where none is called so; None if there is nothing."""
    if key in row or "." not in key:
        return row.pop(key, None)
    *path, last = key.split(".")
    inner: Any = row
    for name in path:
        inner = inner.get(name) if isinstance(inner, dict) else None
    return inner.pop(last, None) if isinstance(inner, dict) else None


def _spelled(row: dict[str, Any] | str, raw: bytes | memoryview) -> str:
    """Give a record as it is set aside: its line, or of a row what is left of it."""
    if len(raw) or isinstance(row, str):
        return bytes(raw).decode("utf-8", "replace")
    return str(row)


def why_unwritable(value: Any, depth: int = 0) -> str:
    """Say what of a record could be read and cannot be written again; "" if there is nothing."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return "holds a whole number of more than 64 bits"
    if not isinstance(value, dict | list | tuple):
        return ""
    if depth == MOST_NESTED:
        return "nested too deep"
    inner = value.values() if isinstance(value, dict) else value
    return next((reason for one in inner if (reason := why_unwritable(one, depth + 1))), "")


def _rows(chunk: Chunk) -> Iterator[tuple[dict[str, Any] | str | None, bytes | memoryview]]:
    """Give each record, None for a blank line, a reason for what cannot be read; and its bytes where they are lines."""
    if chunk.is_arrow:
        for row in arrow_rows(chunk):
            yield row, b""
        return
    for line, is_unended in lines_of(chunk.data):
        yield parse_line(line, is_unended), line


def find_files(inputs: Sequence[Path]) -> list[Path]:
    """Give the files of records that inputs name; of a folder those it holds, which must be of a run that ended."""
    files: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            files.append(path)
            continue
        if (path / "run.json").exists() and not (path / "totals.json").exists():
            raise DataError(
                f"input {path} is the output of a run that has not ended; run that command again, it continues"
            )
        found = {file for pattern in READABLE for file in path.glob(pattern)}
        found = {file for file in found if file.name not in OWN_FILES and file.stat().st_size}
        if not found:
            raise DataError(f"input {path} holds no .jsonl, .jsonl.gz, .jsonl.zst or .parquet file")
        files += sorted(found, key=natural_key)
    check_inputs(files)
    return files


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name each file or folder by as many last parts of its path as tell it from the others."""
    parts = [path.absolute().parts for path in paths]
    names = ["" for _ in parts]
    pending, depth = list(range(len(parts))), 0
    while pending:
        depth += 1
        for number in pending:
            names[number] = "/".join(parts[number][-depth:])
        counts = Counter(names[number] for number in pending)
        # One that is given twice stays as it is.
        pending = [n for n in pending if counts[names[n]] > 1 and depth < len(parts[n])]
    return names


def plan_sources(
    inputs: Sequence[Path],
    *,
    shard_bytes: int,
    text_key: str,
    id_key: str,
    max_document_bytes: int | None = None,
) -> list[PartSource]:
    """Cut the inputs into shards of about so many bytes; a compressed file is one shard, whatever its size.

    max_document_bytes: records that must be longer are told, not read.
    """
    sources = []
    files = find_files(inputs)
    for path, name in zip(files, distinct_names(files), strict=True):
        count = max(round(path.stat().st_size / shard_bytes), 1)
        for number in range(1, count + 1):
            parts = plan_parts([path], number, count)
            keys = text_key, id_key
            sources += [PartSource(part, *keys, name, max_document_bytes) for part in parts]
    return sources


class RecordWriter:
    """Writes documents to a file: `{"text", "id", …}` a line, or a row. The caller closes it and publishes it by rename."""

    def __init__(self, path: Path, kind: Format) -> None:
        """Create the file."""
        self._kind = kind
        self._file: BinaryIO = path.open("wb")
        self._stream: Any = self._file
        self._rows: list[dict[str, Any]] = []
        self._tables: list[Any] = []
        self._row_bytes = 0
        if kind == "jsonl.zst":
            import zstandard

            # Not Arrow's stream, which writes no checksum of the content.
            compressor = zstandard.ZstdCompressor(ZSTD_LEVEL, write_checksum=True)
            self._stream = compressor.stream_writer(self._file, closefd=False)
        elif kind == "jsonl.gz":
            # No name and no time in the header: equal documents give equal files.
            self._stream = gzip.GzipFile("", "wb", 6, self._file, mtime=0)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        # Or it is done later, when nobody hears that it cannot. ValueError: it is closed already.
        for stream in (self._stream, self._file):
            with contextlib.suppress(OSError, ValueError):
                stream.close()

    def write(self, document: Document) -> None:
        """Append one document."""
        row = {"text": document.text, "id": document.id, **document.metadata}
        if self._kind == "parquet":
            self._rows.append(row)
            self._row_bytes += len(document.text)
            if self._row_bytes >= PARQUET_BATCH_BYTES:
                self._make_table()
        else:
            line = orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE)
            self._stream.write(line)

    def close(self) -> None:
        """Write what is pending and force the file to disk."""
        if self._kind == "parquet":
            self._write_parquet()
        if self._stream is not self._file:
            self._stream.close()
        sync(self._file)
        self._file.close()

    def _make_table(self) -> None:
        import pyarrow

        names = dict.fromkeys(name for row in self._rows for name in row)
        try:
            columns = {name: pyarrow.array([row.get(name) for row in self._rows]) for name in names}
        except pyarrow.ArrowException as error:
            raise DataError(
                f"records of one shard have values of different kinds under one key ({error}), which Parquet cannot "
                "hold; use --format jsonl.zst"
            ) from error
        self._tables.append(pyarrow.table(columns))
        self._rows, self._row_bytes = [], 0

    def _write_parquet(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._rows or not self._tables:
            self._make_table()
        try:
            whole = pyarrow.concat_tables(self._tables, promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{error}: Parquet needs one kind a key; use --format jsonl.zst"
            ) from error
        if not whole.num_columns:
            whole = pyarrow.table(
                {"text": pyarrow.array([], "string"), "id": pyarrow.array([], "string")}
            )
        pyarrow.parquet.write_table(whole, self._file, compression="zstd", write_page_checksum=True)
