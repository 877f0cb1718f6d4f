"""The SHA-256 of what is being written, computed while the disk takes it. Knows nothing of files."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

_SMALL_BYTES = 1 << 18  # not worth a second thread
_MAX_PENDING = 8  # pieces that wait to be hashed: copies from a GPU take memory until then


class ContentHash:
    """Hashes pieces in a thread of its own: hashing and writing both leave Python's lock to others.

    A context manager: its thread ends with it.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "hash")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> ContentHash:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()

    def add(self, data: memoryview) -> None:
        """Take the next piece, whose memory must stay as it is until `wait` or `hexdigest`."""
        if len(data) < _SMALL_BYTES and not self._pending:
            self._sha256.update(data)
            return
        if len(self._pending) == _MAX_PENDING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._sha256.update, data))

    def wait(self) -> None:
        """Wait until all pieces are taken in."""
        while self._pending:
            self._pending.popleft().result()

    def hexdigest(self) -> str:
        self.wait()
        return self._sha256.hexdigest()
