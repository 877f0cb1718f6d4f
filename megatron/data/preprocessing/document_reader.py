"""Documents out of files: JSON lines (plain, .gz, .zst), Parquet, or plain text.

Files are cut into parts (`plan_parts`; a shard has its share of them), and parts into chunks of about 1 MB by one
process (`read_chunks`). Of plain JSON lines a chunk is only a span of bytes, which whoever parses it reads (`load`):
so one process can feed many without touching the text. A file that is cut short is an error. Knows nothing of
tokenizers, nor of what is in a record (see records.py).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json")
COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20  # of lines; large enough that handing a chunk over costs little
SCAN_BYTES = 1 << 16  # looked at in one go where a line's end is sought
PARQUET_ROWS = 1024  # decoded at a time at most; fewer where rows are long


@dataclass(frozen=True)
class Part:
    """The records of a file that start in [start, stop): lines, or row groups of Parquet."""

    path: Path
    start: int
    stop: int

    def records_before(self) -> int:
        """Count the records of the file before this part; reads what lies before it."""
        if self.start == 0:
            return 0
        if _kind(self.path) == "parquet":
            with _open_parquet(self.path) as file:
                return _row_groups(file, self)[0]
        with _open(self.path) as file:
            # The first line, and one after each end in the bytes before the last.
            count, left = 1, self.start - 1
            while left and (piece := file.read(min(left, CHUNK_BYTES))):
                count += piece.count(b"\n")
                left -= len(piece)
        return count


@dataclass(frozen=True)
class Span:
    """Lines of a plain file that start in [start, stop), to be read later."""

    part: Part
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Count the bytes of input this stands for."""
        return self.stop - self.start


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file, not parsed yet: whole lines, or rows as an Arrow IPC stream."""

    part: Part
    num_bytes: int  # of input, on disk, that this stands for
    data: bytes | bytearray | memoryview
    is_arrow: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # The data travels beside the pickle, not in it.
        return Chunk, (self.part, self.num_bytes, pickle.PickleBuffer(self.data), self.is_arrow)


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


def plan_parts(paths: Sequence[Path], shard: int = 1, num_shards: int = 1) -> list[Part]:
    """Give the parts of all files, or those of one shard (from 1): shards in order make the whole, in order.

    Shards are equal in bytes of input. A compressed file is not cut: it belongs to the shard its first byte lies in.
    """
    sizes = [path.stat().st_size for path in paths]
    total = sum(sizes)
    begin, end = total * (shard - 1) // num_shards, total * shard // num_shards
    parts = []
    file_start = 0
    for path, size in zip(paths, sizes, strict=True):
        start, stop = max(begin - file_start, 0), min(end - file_start, size)
        if _is_compressed(path) and start < stop:
            start, stop = (0, size) if start == 0 else (0, 0)
        if start < stop:
            parts.append(Part(path, start, stop))
        file_start += size
    return parts


def read_chunks(
    part: Part, keys: Sequence[str], fields: Sequence[str] = (), *, max_records: int | None = None
) -> Iterator[Span | Chunk]:
    """Cut a part into chunks of about 1 MB, at most max_records records each.

    Of Parquet, only some columns are read: keys, which must hold strings, and fields, which may be missing.
    """
    if _kind(part.path) == "parquet":
        yield from _read_parquet(part, keys, fields, max_records)
        return
    _refuse_array(part.path)
    if _is_compressed(part.path) or max_records is not None:
        yield from _read_lines(part, max_records)
        return
    for start in range(part.start, part.stop, CHUNK_BYTES):
        yield Span(part, start, min(start + CHUNK_BYTES, part.stop))


def load(chunk: Span | Chunk) -> Chunk:
    """Read the lines of a span."""
    if isinstance(chunk, Chunk):
        return chunk
    path = chunk.part.path
    with _open(path) as file:
        try:
            if os.fstat(file.fileno()).st_size < chunk.stop:
                raise DataError(f"input {path} became shorter while it was read; start again")
            first = _line_start(file, chunk.start, chunk.stop)
            last = _line_start(file, chunk.stop) if first < chunk.stop else first
            file.seek(first)
            data = file.read(last - first)
        except OSError as error:
            raise DataError(f"input {path} cannot be read: {error.strerror}") from error
    if len(data) < last - first:
        raise DataError(f"input {path} became shorter while it was read; start again")
    return Chunk(chunk.part, chunk.num_bytes, data)


def read_text(path: Path) -> Iterator[tuple[str, int]]:
    """Give a plain-text file in pieces of whole lines of about 1 MB, each with the bytes of input it stands for."""
    for chunk in _read_lines(Part(path, 0, path.stat().st_size), None):
        yield bytes(chunk.data).decode("utf-8", "replace"), chunk.num_bytes


def is_plain_text(path: Path) -> bool:
    """Say whether a file is neither JSON lines nor Parquet by its name."""
    return _kind(path) == "text"


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".parquet":
        return "parquet"
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return "json" if suffixes and suffixes[-1] in JSON_SUFFIXES else "text"


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSIONS


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}") from error


def _damaged(path: Path, error: object) -> DataError:
    return DataError(
        f"input {path} is damaged or cut short ({error}); nothing was kept of it: replace it or leave it out"
    )


def _refuse_array(path: Path) -> None:
    """Raise DataError if a .json file is one array."""
    if ".json" not in path.suffixes:
        return
    with _open(path) as raw:
        try:
            start = _decompress(path, raw).read(SCAN_BYTES)
        except (EOFError, zlib.error, OSError) as error:
            raise _damaged(path, error) from error
    if start.lstrip()[:1] == b"[":
        raise DataError(
            f"input {path} is one JSON array; write one object a line: jq -c '.[]' {path}"
        )


def _line_start(file: BinaryIO, position: int, limit: int | None = None) -> int:
    """Give where the first line starts at or after a position: the end of the file if none does.

    With a limit, none that starts there or later is looked for, and a number >= limit is given.
    """
    if position == 0:
        return 0
    file.seek(position - 1)
    position -= 1
    while piece := file.read(SCAN_BYTES):
        found = piece.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(piece)
        if limit is not None and position >= limit:
            break
    return position


def _read_lines(part: Part, max_records: int | None) -> Iterator[Chunk]:
    """Give the decompressed lines of a file in blocks; the bytes of input follow the reading."""
    with _open(part.path) as raw:
        try:
            stream = _decompress(part.path, raw)
            done = part.start
            for block in _blocks(stream, raw, part, max_records):
                position = min(max(raw.tell(), done), part.stop)
                yield Chunk(part, position - done, block)
                done = position
        except (EOFError, zlib.error, OSError) as error:
            raise _damaged(part.path, error) from error
        if done < part.stop:
            yield Chunk(part, part.stop - done, b"")


def _blocks(
    stream: BinaryIO, raw: BinaryIO, part: Part, max_records: int | None
) -> Iterator[bytearray]:
    """Give whole lines, about CHUNK_BYTES together, and of a plain file only those that start in the part."""
    left = None
    if stream is raw:
        last = _line_start(raw, part.stop)
        left = last - raw.seek(_line_start(raw, part.start))
    pending = bytearray()
    while left != 0:
        piece = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not piece:
            break
        left = None if left is None else left - len(piece)
        end = piece.rfind(b"\n") + 1
        if end == 0:
            pending += piece
            continue
        pending += memoryview(piece)[:end]
        yield from _split(pending, max_records)
        pending = bytearray(memoryview(piece)[end:])
    if pending:
        yield pending


def _split(block: bytearray, max_records: int | None) -> Iterator[bytearray]:
    """Give the lines of a block, at most max_records together."""
    if max_records is None:
        yield block
        return
    start = 0
    while start < len(block):
        end = start
        for _ in range(max_records):
            end = block.find(b"\n", end) + 1
            if end in (0, len(block)):
                end = len(block)
                break
        yield block[start:end]
        start = end


def _decompress(path: Path, raw: BinaryIO) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), CHUNK_BYTES)
    if suffix == ".zst":
        # Not the zstandard package: its reader ends without an error where a file is cut short.
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(raw, compression="zstd"), CHUNK_BYTES)
    return raw


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file for reading little by little; DataError where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        # With the defaults, all columns of a row group are held at once.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK_BYTES) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"input {path} is not a whole Parquet file: {error}") from error


def _row_groups(file: Any, part: Part) -> tuple[int, list[int]]:
    """Give the first row and the numbers of the row groups that start in a part.

    Where a group starts is reckoned as if all rows of the file had one length.
    """
    size, rows = part.path.stat().st_size, max(file.metadata.num_rows, 1)
    row, first_row = 0, 0
    numbers: list[int] = []
    for number in range(file.num_row_groups):
        if part.start <= size * row // rows < part.stop:
            first_row = first_row if numbers else row
            numbers.append(number)
        row += file.metadata.row_group(number).num_rows
    return first_row, numbers


def _read_parquet(
    part: Part, keys: Sequence[str], fields: Sequence[str], max_rows: int | None
) -> Iterator[Chunk]:
    with _open_parquet(part.path) as file:
        columns = _columns(part.path, file.schema_arrow, keys, fields)
        _, numbers = _row_groups(file, part)
        groups = [file.metadata.row_group(number) for number in numbers]
        num_rows = sum(group.num_rows for group in groups)
        row_bytes = sum(group.total_byte_size for group in groups) // max(num_rows, 1)
        limit = min(
            max(CHUNK_BYTES // max(row_bytes, 1), 1), PARQUET_ROWS, max_rows or PARQUET_ROWS
        )
        size, done, row = part.stop - part.start, 0, 0
        for batch in file.iter_batches(batch_size=limit, row_groups=numbers, columns=columns):
            row += batch.num_rows
            position = size * row // num_rows
            yield Chunk(part, position - done, _as_stream(batch), is_arrow=True)
            done = position
        if done < size:
            yield Chunk(part, size - done, b"")


def _columns(path: Path, schema: Any, keys: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Give the columns to read: every key, which must hold strings, and those of the fields that there are."""
    import pyarrow.types

    for key in keys:
        if key not in schema.names:
            raise DataError(f"input {path} has no column {key!r}; it has {', '.join(schema.names)}")
        kind = schema.field(key).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise DataError(f"input {path}: column {key!r} holds {kind}, not strings")
    return list(dict.fromkeys([*keys, *(field for field in fields if field in schema.names)]))


def _as_stream(batch: Any) -> memoryview:
    """Give rows as an Arrow IPC stream, which is their memory and a short header."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())
