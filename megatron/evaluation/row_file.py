"""Files of rows, an object each: JSON lines, plain or gzip, and Parquet. Knows nothing of what rows say."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron.errors import DataError

PARQUET_MAGIC = b"PAR1"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of JSON lines, gzip or plain, or of Parquet. Raises DataError, which names the line."""
    try:
        data = path.read_bytes()
        if data[:4] == PARQUET_MAGIC:
            yield from enumerate(_read_parquet(path), start=1)
            return
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} holds no object")
        yield number, row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # read_table would import pandas
        with parquet.ParquetFile(path) as file:
            rows: list[dict[str, Any]] = file.read().to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    return rows


class RowWriter:
    """Adds rows to a file of JSON lines, which an interrupted run may have left: its torn last line is cut off."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError."""
        self._file = path.open("ab")
        self._file.truncate(_whole_lines(path))

    def clear(self) -> None:
        """Begin anew. Raises OSError."""
        self._file.truncate(0)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, which another process can read at once. Raises OSError."""
        self._file.write(f"{json.dumps(row)}\n".encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _whole_lines(path: Path) -> int:
    """Give the bytes up to the last line's end."""
    return path.read_bytes().rfind(b"\n") + 1
