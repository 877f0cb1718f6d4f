"""The text of a completion while it grows: bytes in, characters out as soon as nothing can take them back.

Tokens may hold parts of characters and of stop texts. Knows nothing of tokenizers.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes of UTF-8, up to the stop text that is complete first."""

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: none empty."""
        self._stops = [stop.encode() for stop in stops]
        self._longest = max(map(len, self._stops), default=0)
        self._data = bytearray()
        self._num_given = 0  # bytes that `take` gave
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> bool:
        """Append bytes; True if they complete a stop text, before which the text then ends."""
        if not self._stops:
            self._data += data
            return False
        start = max(0, len(self._data) - self._longest + 1)
        self._data += data
        places = [(self._data.find(stop, start), len(stop)) for stop in self._stops]
        # by their ends first, so that it does not matter how bytes come together
        found = [(place + size, place) for place, size in places if place >= 0]
        if not found:
            return False
        del self._data[min(found)[1] :]
        return True

    def take(self) -> str:
        """Give the characters since the last call, but for an end that may be the start of a stop text."""
        held = self._num_held() if self._stops else 0
        return self._give(len(self._data) - held, is_end=False)

    def finish(self) -> str:
        """Give all that is left; an incomplete character becomes U+FFFD."""
        return self._give(len(self._data), is_end=True)

    def _give(self, end: int, *, is_end: bool) -> str:
        data = bytes(self._data[self._num_given : end])
        self._num_given = max(self._num_given, end)
        return self._decoder.decode(data, is_end)

    def _num_held(self) -> int:
        """Count the bytes at the end with which a stop text starts."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, len(stop))
                if self._data.endswith(stop[:size])
            ),
            default=0,
        )
