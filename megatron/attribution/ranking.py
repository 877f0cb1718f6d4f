"""How much of a text stands in a document, and where: compares them line by line.

Lines are compared with their white space made one, so that indentation does not count; those of one or two
characters, such as a closing brace, do not count either. Knows nothing of indexes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MIN_LINE = 3  # characters of a line that says something
MAX_WEIGHT = 80  # characters of a line that count
SLACK_LINES = 3  # that may stand between the lines of the text in the document
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Place:
    """The lines of a document that are most like a text."""

    share: float  # of the text that stands there, word for word: 0 to 1
    first_line: int  # from 1
    last_line: int  # itself included


class LineRanking:
    """A text, ready to be compared with documents."""

    def __init__(self, text: str) -> None:
        lines = [_plain(line) for line in text.splitlines()]
        self._weights = {x: min(len(x), MAX_WEIGHT) for x in lines if len(x) >= MIN_LINE}
        self._total = sum(self._weights.values())
        self._num_lines = len(lines) + SLACK_LINES
        self._words = {word.lower() for word in _WORD.findall(text)}

    def place_in(self, document: str) -> Place | None:
        """Find the lines that hold most of the text; None if no line and no word of it is there."""
        lines = document.split("\n")
        shared = [
            (number, plain)
            for number, plain in enumerate(map(_plain, lines), 1)
            if plain in self._weights
        ]
        if shared:
            return self._best_window(shared)
        counts = [len(self._words.intersection(map(str.lower, _WORD.findall(x)))) for x in lines]
        if not any(counts):
            return None
        best = counts.index(max(counts)) + 1
        return Place(0.0, best, best)

    def _best_window(self, shared: Sequence[tuple[int, str]]) -> Place:
        """Choose the window of lines, about as long as the text, that holds most of it; each line counts once."""
        best = (0, 0, 0)
        inside: dict[str, int] = {}
        weight = first = 0
        for number, plain in shared:
            if not inside.get(plain):
                weight += self._weights[plain]
            inside[plain] = inside.get(plain, 0) + 1
            while number - shared[first][0] >= self._num_lines:
                left = shared[first][1]
                inside[left] -= 1
                if not inside[left]:
                    weight -= self._weights[left]
                first += 1
            if weight > best[0]:
                best = (weight, shared[first][0], number)
        return Place(best[0] / self._total, best[1], best[2])


def _plain(line: str) -> str:
    return " ".join(line.split())
