"""The SHA-256 of what is being written, computed while the disk takes it. Knows nothing of files."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

_SMALL_BYTES = 1 << 18  # not worth a second thread


class ContentHash:
    """Hashes pieces in a thread of its own: hashing and writing both leave Python's lock to others.

    A context manager: its thread ends with it.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "hash")
        self._pending: Future[None] | None = None

    def __enter__(self) -> ContentHash:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def begin(self, data: memoryview) -> None:
        """Take the next piece, whose memory must stay as it is until `end`."""
        if len(data) < _SMALL_BYTES:
            self._sha256.update(data)
        else:
            self._pending = self._thread.submit(self._sha256.update, data)

    def end(self) -> None:
        """Wait until the piece is taken in."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
