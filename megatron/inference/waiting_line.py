"""Who is next: clients take turns, and what each of them asked for comes in its order.

So whoever asks for a little waits for one turn of each other client, however much those have asked for. Knows nothing
of requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """What waits, in a line for each client. The same calls give the same order, on every process."""

    def __init__(self, client_of: Callable[[T], str]) -> None:
        """client_of: says who asked for something."""
        self._client_of = client_of
        self._lines: dict[str, deque[T]] = {}  # none empty, in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        """Give all that wait, in no order that matters."""
        for line in self._lines.values():
            yield from line

    @property
    def first(self) -> T:
        """What `pop` gives next."""
        return next(iter(self._lines.values()))[0]

    def append(self, item: T) -> None:
        """Let something wait behind what its client has asked for already."""
        self._lines.setdefault(self._client_of(item), deque()).append(item)

    def pop(self) -> T:
        """Take what is next; its client comes behind all others then."""
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        item = line.popleft()
        if line:
            self._lines[client] = line
        return item

    def put_back(self, items: Sequence[T]) -> None:
        """Let what was taken last be taken next, in the same order."""
        for item in reversed(items):
            client = self._client_of(item)
            line = self._lines.pop(client, deque())
            line.appendleft(item)
            self._lines = {client: line, **self._lines}

    def remove(self, holds: Callable[[T], bool]) -> list[T]:
        """Take out all of which something holds."""
        removed = [item for item in self if holds(item)]
        for client, line in list(self._lines.items()):
            left = deque(item for item in line if not holds(item))
            if left:
                self._lines[client] = left
            else:
                del self._lines[client]
        return removed
