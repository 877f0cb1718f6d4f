"""Files opened for reading: mapped, or read in parts by position. Knows nothing of what they hold."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megatron.errors import DataError


def map_file(path: Path) -> mmap.mmap | bytes:
    """Map a file for reading; an empty one, which cannot be mapped, as b""."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def page_by_page(mapped: mmap.mmap | bytes) -> Iterator[None]:
    """Fetch only the pages of a map that are touched, where the kernel would fetch 128 kB around each.

    Opening looks at a few entries of an index: a hundred files that are not cached open in a quarter of the time.
    """
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_RANDOM)
    yield
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_NORMAL)


def open_file(path: Path) -> BinaryIO:
    """Open a file of a dataset, unbuffered. Raises DataError if it is not there."""
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; a dataset is given by its prefix, the path without .bin and .idx"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


class PositionedReader:
    """Parts of a file by position, from any thread.

    For parts that lie anywhere and are read once. A map would fetch 128 kB around each from disk, count all that was
    ever read as memory of the process, and end the process where a file system fails or the file was cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path)
        self.num_bytes = os.fstat(self._file.fileno()).st_size

    def expect(self, start: int, num_bytes: int) -> None:
        """Say that a part will be read, so that the disk fetches several at a time."""
        os.posix_fadvise(self._file.fileno(), start, num_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, num_bytes: int) -> bytes:
        """Give num_bytes from start on. Raises DataError where they cannot be read."""
        try:
            content = os.pread(self._file.fileno(), num_bytes, start)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(content) < num_bytes:
            raise DataError(
                f"{self.path} ends at byte {start + len(content)} and had {self.num_bytes} when it was opened: it was "
                "changed meanwhile. Put it back, and never write to the files of a dataset in use"
            )
        return content
