"""Documents out of files: JSON lines (plain, .gz, .zst), Parquet, or plain text.

Files are cut into parts (`plan_parts`; a shard has its share of them), and parts into chunks of about 1 MB by one
process (`read_chunks`). Of plain JSON lines a chunk is only a span of bytes, which whoever parses it reads (`load`):
so one process can feed many without touching the text. A record that is too long can be left out before it is held. A
file that is cut short or damaged is an error. Knows nothing of tokenizers, nor of what is in a record (see records.py).
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron.data.preprocessing.parquet_rows import read_rows, rows_before
from megatron.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json")
COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20  # of lines; large enough that handing a chunk over costs little
SCAN_BYTES = 1 << 16  # looked at in one go where a line's end is sought


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
        if is_parquet(self.path):
            return rows_before(self.path, self.start)
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
    max_record_bytes: int | None = None

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
    num_skipped_bytes: int = (
        0  # of one more record behind these, which is too long and was not kept
    )

    def __reduce__(self) -> tuple[Any, ...]:
        # The data travels beside the pickle, not in it.
        data = pickle.PickleBuffer(self.data)
        return Chunk, (self.part, self.num_bytes, data, self.is_arrow, self.num_skipped_bytes)


def check_inputs(paths: Sequence[Path], *, allow_text: bool = False) -> None:
    """Raise DataError unless every path is a file of its own that is not empty and of a known kind."""
    names: dict[Path, Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise DataError(
                f"input {path} does not exist (files only; nothing is downloaded)"
            ) from None
        except OSError as error:
            raise DataError(f"input {path} cannot be read: {error.strerror}") from None
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"input {path} is a folder; name its files, as {path}/*.jsonl")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"input {path} is a pipe or a device, which can be read only once and from its beginning; write what "
                "comes out of it to a file"
            )
        if status.st_size == 0:
            raise DataError(f"input {path} is empty; leave it out")
        file = path.resolve()
        if file in names:
            raise DataError(
                f"input {path} is the file that {names[file]} names, too: its documents would come twice; name it once "
                "(a run reads a dataset more often by its weight in --data-path)"
            )
        names[file] = path
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
    part: Part,
    keys: Sequence[str],
    fields: Sequence[str] = (),
    *,
    max_records: int | None = None,
    max_record_bytes: int | None = None,
) -> Iterator[Span | Chunk]:
    """Cut a part into chunks of about 1 MB, at most max_records records each.

    Of Parquet, only some columns are read: keys, which must hold strings, and fields, which may be missing. A longer
    line than max_record_bytes (and 1 MB), or a row whose texts are longer, is skipped, and never held as a whole.
    """
    longest = None if max_record_bytes is None else max(max_record_bytes, CHUNK_BYTES)
    if is_parquet(part.path):
        place = part.path, part.start, part.stop
        for rows in read_rows(*place, keys, fields, max_rows=max_records, max_bytes=longest):
            yield Chunk(part, rows.num_bytes, rows.stream, True, rows.num_skipped_bytes)
        return
    _refuse_array(part.path)
    if _is_compressed(part.path) or max_records is not None:
        yield from _read_lines(part, max_records, longest)
        return
    for start in range(part.start, part.stop, CHUNK_BYTES):
        yield Span(part, start, min(start + CHUNK_BYTES, part.stop), longest)


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
            size = last - first
            longest = size if chunk.max_record_bytes is None else chunk.max_record_bytes
            if size > longest:  # only the last one can be: the others lie within the span
                start = _last_line_start(file, first, chunk.stop)
                size = start - first if last - start > longest else size
                file.seek(first)
            data = file.read(size)
        except OSError as error:
            raise DataError(f"input {path} cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise DataError(f"input {path} became shorter while it was read; start again")
    return Chunk(chunk.part, chunk.num_bytes, data, num_skipped_bytes=last - first - size)


def read_text(path: Path) -> Iterator[tuple[str, int]]:
    """Give a plain-text file in pieces of whole lines of about 1 MB, each with the bytes of input it stands for."""
    for chunk in _read_lines(Part(path, 0, path.stat().st_size)):
        yield bytes(chunk.data).decode("utf-8", "replace"), chunk.num_bytes


def is_plain_text(path: Path) -> bool:
    """Say whether a file is neither JSON lines nor Parquet by its name."""
    return _kind(path) == "text"


def is_parquet(path: Path) -> bool:
    """Say whether a file is Parquet by its name."""
    return _kind(path) == "parquet"


def is_plain(path: Path) -> bool:
    """Say whether a file can be read from any byte on."""
    return not (_is_compressed(path) or is_parquet(path))


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


def _last_line_start(file: BinaryIO, first: int, stop: int) -> int:
    """Give where the last of the lines starts that start in [first, stop), which is one itself."""
    end = stop - 1  # behind the last byte that can end the line before it
    while end > first:
        start = max(end - SCAN_BYTES, first)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return first


def _read_lines(
    part: Part, max_records: int | None = None, longest: int | None = None
) -> Iterator[Chunk]:
    """Give the decompressed lines of a file in blocks; the bytes of input follow the reading."""
    with _open(part.path) as raw:
        try:
            stream = _decompress(part.path, raw)
            done = part.start
            for block, num_skipped in _blocks(_pieces(stream, raw, part), longest):
                for lines in _split(block, max_records):
                    position = min(max(raw.tell(), done), part.stop)
                    yield Chunk(part, position - done, lines)
                    done = position
                if num_skipped:
                    yield Chunk(part, 0, b"", num_skipped_bytes=num_skipped)
        except (EOFError, zlib.error, OSError) as error:
            raise _damaged(part.path, error) from error
        if done < part.stop:
            yield Chunk(part, part.stop - done, b"")


def _pieces(stream: BinaryIO, raw: BinaryIO, part: Part) -> Iterator[bytes]:
    """Give what is in a stream, about CHUNK_BYTES at a time, of a plain file the lines that start in the part."""
    left = None
    if stream is raw:
        last = _line_start(raw, part.stop)
        left = last - raw.seek(_line_start(raw, part.start))
    while left != 0:
        piece = stream.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece


def _blocks(pieces: Iterator[bytes], longest: int | None) -> Iterator[tuple[bytearray, int]]:
    """Give whole lines, about CHUNK_BYTES together, and the bytes of one behind them that is skipped, or 0."""
    pending = bytearray()
    num_skipped = 0  # of the line that the next piece goes on with
    for piece in pieces:
        first = piece.find(b"\n") + 1
        if longest is not None and not num_skipped:
            num_skipped = len(pending) if len(pending) + (first or len(piece)) > longest else 0
        if num_skipped:
            pending = bytearray()
            num_skipped += first or len(piece)
            if not first:
                continue
            yield pending, num_skipped
            piece, num_skipped = piece[first:], 0
        end = piece.rfind(b"\n") + 1
        if end == 0:
            pending += piece
            continue
        pending += memoryview(piece)[:end]
        yield pending, 0
        pending = bytearray(memoryview(piece)[end:])
    if pending or num_skipped:
        yield pending, num_skipped


def _split(block: bytearray, max_records: int | None) -> Iterator[bytearray]:
    """Give the lines of a block, at most max_records together."""
    if max_records is None and block:
        yield block
    if max_records is None:
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
