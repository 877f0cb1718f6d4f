"""SHA-256 of the files of a dataset: taken while they are written, kept in `PREFIX.sha256`, compared later.

The file is a list of megatron/checksum.py. Knows nothing of what the files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron.checksum import PIECE, ChecksumListError, parse_checksums
from megatron.errors import DataError

AHEAD = 4  # pieces that may wait to be hashed


def checksum_path(prefix: str | Path) -> Path:
    """Give the path of the checksums."""
    return Path(f"{prefix}.sha256")


class HashedFile:
    """A file that a thread of its own writes and hashes, so that the caller does something else meanwhile.

    The thread starts at the first write, so that the caller may fork before.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Wrap an empty file; `close` closes it."""
        self.file = file
        self._hash = hashlib.sha256()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Append to the file; what is given may be changed afterwards. Raises the OSError of an earlier write."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_pieces, daemon=True)
            self._thread.start()
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for start in range(0, len(view), PIECE):
            self._raise_error()
            self._pieces.put(bytes(view[start : start + PIECE]))

    def hexdigest(self) -> str:
        """Give the hash of all that was written; nothing can be written after that."""
        self._end()
        self._raise_error()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file, even if what it holds is refused by a full disk."""
        self._end()
        with contextlib.suppress(OSError):
            self.file.close()

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _next(self) -> bytes | None:
        # A signal's exception can come between a queue's put and its call to who waits: look again by oneself.
        while True:
            with contextlib.suppress(queue.Empty):
                return self._pieces.get(timeout=1.0)

    def _write_pieces(self) -> None:
        while (piece := self._next()) is not None:
            if self._error is not None:
                continue
            try:
                self.file.write(piece)
            except OSError as error:
                self._error = error
            self._hash.update(piece)


@dataclass(frozen=True)
class Checksums:
    """What `PREFIX.sha256` says of the files of a dataset."""

    path: Path
    digests: dict[Path, str]

    @classmethod
    def open(cls, prefix: str | Path) -> Checksums | None:
        """Read the checksums of a dataset; None if it was written without, as other programs do."""
        path = checksum_path(prefix)
        return cls(path, read_checksums(path)) if path.exists() else None

    def compare(self, file: Path, digest: str) -> None:
        """Raise DataError unless this is what is written of a file."""
        if file not in self.digests:
            raise DataError(
                f"{self.path} does not name {file}: they were not written together; copy all files of the dataset "
                "again"
            )
        if self.digests[file] != digest:
            raise DataError(
                f"{file} is damaged: its SHA-256 is {digest}, not what {self.path} says; copy it again, or run "
                "tools/preprocess_data.py again"
            )


def read_checksums(path: Path) -> dict[Path, str]:
    """Give {path of the file: hex} of a checksum file; raise DataError if it is none."""
    try:
        digests = parse_checksums(path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except ChecksumListError as error:
        if error.line is None:
            raise DataError(
                f"{path} is cut short; it should name the files of the dataset, a line each"
            ) from None
        raise DataError(
            f"{path}:{error.line} is not a checksum and the name of a file beside it"
        ) from None
    return {path.parent / name: digest for name, digest in digests.items()}
