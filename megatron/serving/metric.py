"""Counters and histograms in the text format that Prometheus reads. Not for several threads at once."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counter:
    """A number that grows, for each value of a label if there is one."""

    def __init__(
        self, name: str, what: str, label: str = "", values: Sequence[str] = ("",)
    ) -> None:
        self._name, self._what, self._label = name, what, label
        self.numbers = dict.fromkeys(values, 0)

    def add(self, number: int = 1, value: str = "") -> None:
        self.numbers[value] += number

    def lines(self) -> Iterator[str]:
        """Give its text."""
        yield from _head(self._name, self._what, "counter")
        for value, number in self.numbers.items():
            label = f'{{{self._label}="{value}"}}' if self._label else ""
            yield f"{self._name}{label} {number}"


class Histogram:
    """Times, by how many lie up to each bound."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name, self._what, self._bounds = name, what, bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def add(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds
        self.count += 1

    def lines(self) -> Iterator[str]:
        """Give its text."""
        yield from _head(self._name, self._what, "histogram")
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self._name}_bucket{{le="{bound}"}} {total}'
        yield f"{self._name}_sum {self.sum:.6f}"
        yield f"{self._name}_count {self.count}"


def gauge(name: str, what: str, number: float) -> Iterator[str]:
    """Give the text of a number of this moment."""
    yield from _head(name, what, "gauge")
    yield f"{name} {number:g}"


def _head(name: str, what: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
