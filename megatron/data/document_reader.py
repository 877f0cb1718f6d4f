"""Documents out of files: JSON lines (plain, .gz, .zst), Parquet, or plain text.

A file is cut into chunks of records by one process (`read_chunks`) and each chunk is parsed by any other
(`parse_chunk`), so that parsing scales with workers. A record that cannot be used is reported with its place and a
reason, never dropped silently; a file that is cut short is an error. Knows nothing of tokenizers.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json")
COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20  # of lines; large enough that handing a chunk over costs little
PARQUET_ROWS = 256


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file, not parsed yet."""

    path: Path
    first: int  # number of the first record (line or row), from 1
    lines: list[bytes] = field(default_factory=list)  # of JSON
    columns: dict[str, list[str | None]] | None = None  # of Parquet
    position: int = 0  # bytes of the file on disk that are read when this chunk is


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used."""

    path: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


@dataclass
class Records:
    """The texts of a chunk: for each key one list, all of the same length."""

    texts: dict[str, list[str]]
    num_read: int = 0
    num_blank: int = 0
    bad: list[BadRecord] = field(default_factory=list)


def check_inputs(paths: Sequence[Path], *, allow_text: bool = False) -> None:
    """Raise DataError unless every path is a file that is not empty and of a known kind."""
    for path in paths:
        if path.is_dir():
            raise DataError(f"input {path} is a folder; name its files, as {path}/*.jsonl")
        if not path.is_file():
            raise DataError(f"input {path} does not exist (files only; nothing is downloaded)")
        if path.stat().st_size == 0:
            raise DataError(f"input {path} is empty; leave it out")
        if not allow_text and _kind(path) == "text":
            raise DataError(
                f"input {path} is of no known kind; known are .jsonl and .json (one object a line), "
                "these with .gz or .zst, and .parquet"
            )


def read_chunks(
    path: Path, keys: Sequence[str], *, max_records: int | None = None
) -> Iterator[Chunk]:
    """Cut a JSON-lines or Parquet file into chunks of about 1 MB, at most max_records records each."""
    if _kind(path) == "parquet":
        yield from _read_parquet(path, keys, max_records or PARQUET_ROWS)
        return
    first = 1
    with path.open("rb") as raw:
        for lines in _line_groups(path, raw):
            if first == 1 and _looks_like_array(path, lines[0]):
                raise DataError(
                    f"input {path} is one JSON array; write one object a line: jq -c '.[]' {path}"
                )
            step = max_records or len(lines)
            for start in range(0, len(lines), step):
                part = lines[start : start + step]
                yield Chunk(path, first, lines=part, position=raw.tell())
                first += len(part)


def read_text(path: Path) -> Iterator[tuple[str, int]]:
    """Give a plain-text file in pieces of whole lines of about 1 MB, each with the bytes read so far."""
    with path.open("rb") as raw:
        for lines in _line_groups(path, raw):
            yield b"".join(lines).decode("utf-8", "replace"), raw.tell()


def is_plain_text(path: Path) -> bool:
    """Say whether a file is neither JSON lines nor Parquet by its name."""
    return _kind(path) == "text"


def parse_chunk(chunk: Chunk, keys: Sequence[str]) -> Records:
    """Give the texts under `keys`; a record counts only if it has a string under each of them."""
    records = Records({key: [] for key in keys})
    rows = _rows_of_columns(chunk, keys) if chunk.columns is not None else _rows_of_lines(chunk)
    for number, row in enumerate(rows, chunk.first):
        records.num_read += 1
        if row is None:
            records.num_blank += 1
            continue
        reason = row if isinstance(row, str) else _why_unusable(row, keys)
        if reason is not None:
            records.bad.append(BadRecord(chunk.path, number, reason))
            continue
        for key in keys:
            records.texts[key].append(row[key])
    return records


def _rows_of_columns(chunk: Chunk, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    assert chunk.columns is not None
    for values in zip(*(chunk.columns[key] for key in keys), strict=True):
        yield dict(zip(keys, values, strict=True))


def _rows_of_lines(chunk: Chunk) -> Iterator[Any]:
    """Give each line's value: a dict, None for a blank line, or a string that says what is wrong."""
    for line in chunk.lines:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            yield "not JSON" if line.strip() else None
            continue
        yield value if isinstance(value, dict) else "not a JSON object"


def _why_unusable(row: dict[str, Any], keys: Sequence[str]) -> str | None:
    for key in keys:
        if key not in row:
            return f"no key {key!r}"
        if not isinstance(row[key], str):
            return f"key {key!r} is not a string"
    return None


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".parquet":
        return "parquet"
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return "json" if suffixes and suffixes[-1] in JSON_SUFFIXES else "text"


def _looks_like_array(path: Path, line: bytes) -> bool:
    return ".json" in path.suffixes and line.lstrip()[:1] == b"["


def _line_groups(path: Path, raw: BinaryIO) -> Iterator[list[bytes]]:
    """Give the decompressed lines of a file in groups of about CHUNK_BYTES; never an empty group."""
    try:
        stream = _decompress(path, raw)
        while lines := stream.readlines(CHUNK_BYTES):
            yield lines
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"input {path} is damaged or cut short ({error}); nothing was kept of it: replace it or leave it out"
        ) from error


def _decompress(path: Path, raw: BinaryIO) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), CHUNK_BYTES)
    if suffix == ".zst":
        # Not the zstandard package: its reader ends without an error where a file is cut short.
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(raw, compression="zstd"), CHUNK_BYTES)
    return raw


def _read_parquet(path: Path, keys: Sequence[str], max_rows: int) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            for key in keys:
                if key not in schema.names:
                    raise DataError(
                        f"input {path} has no column {key!r}; it has {', '.join(schema.names)}"
                    )
                kind = schema.field(key).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    raise DataError(f"input {path}: column {key!r} holds {kind}, not strings")
            size, num_rows, done = path.stat().st_size, file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=max_rows, columns=list(keys)):
                columns = {key: batch.column(key).to_pylist() for key in keys}
                position = size * (done + batch.num_rows) // max(num_rows, 1)
                yield Chunk(path, done + 1, columns=columns, position=position)
                done += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"input {path} is not a whole Parquet file: {error}") from error
