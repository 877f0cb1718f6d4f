"""Timing of ours against a peer's, turn by turn in one run, and the table of what came out.

A machine is never quiet: both sides are timed in every round, in turns, and what is reported is the ratio of each
round, by its median and its extremes, beside the medians of the speeds. Knows nothing of what is timed.
"""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from megatron.benchmark.output import markdown

Side = TypeVar("Side")
Clock = Callable[[], float]
Timed = Callable[[], float]  # does the work once and gives seconds


@dataclass(frozen=True)
class Row:
    """One line of the table: amounts of `unit` a second for ours and a peer."""

    what: str
    unit: str
    ours: tuple[float, ...]  # a round each
    peer_name: str = "-"
    peer: tuple[float, ...] = ()
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours over the peer's, round by round."""
        return sorted(a / b for a, b in zip(self.ours, self.peer, strict=True))

    def cells(self) -> tuple[str, ...]:
        """Give the columns of HEADER."""
        peer = _speed(statistics.median(self.peer)) if self.peer else ""
        ratio = ""
        if self.peer:
            low, middle, high = self.ratios[0], statistics.median(self.ratios), self.ratios[-1]
            ratio = f"{_speed(middle)}x ({_speed(low)} to {_speed(high)})"
        ours = _speed(statistics.median(self.ours))
        spread = f"{_speed(min(self.ours))} to {_speed(max(self.ours))}"
        return (self.what, self.unit, ours, spread, self.peer_name, peer, ratio, self.note)


HEADER = ("what", "unit", "ours", "spread", "peer", "peer's", "ratio", "note")


def seconds(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Time one call."""
    gc.collect()
    start = clock()
    work()
    return clock() - start


def timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> Timed:
    """Make a call one that gives its seconds."""
    return lambda: seconds(work, clock)


def core_seconds() -> float:
    """Give what this process, and those it has waited for, have had of a core so far: a clock for a busy machine."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def scaled(work: Timed, factor: float) -> Timed:
    """Stand for a different amount of the same work."""
    return lambda: work() * factor


def turned(sides: Sequence[Side], number: int) -> Sequence[Side]:
    """Give the sides in the order of a round: odd ones take the turns in reverse."""
    return sides[::-1] if number % 2 else sides


def measure(
    what: str,
    unit: str,
    amount: float,
    ours: Timed,
    peers: dict[str, Timed],
    *,
    rounds: int,
    note: str = "",
) -> list[Row]:
    """Time ours and each peer in turns, `rounds` times, and give a row for each peer (or one without).

    amount: how many units of work one call does.
    """
    speeds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    sides = [("ours", ours), *peers.items()]
    for number in range(rounds):
        for name, work in turned(sides, number):
            speeds[name].append(amount / work())
    mine = tuple(speeds["ours"])
    if not peers:
        return [Row(what, unit, mine, note=note)]
    return [Row(what, unit, mine, name, tuple(speeds[name]), note) for name in peers]


def shown(rows: Iterable[Row]) -> list[Row]:
    """Show rows to who waits, as they come, and give all of them."""
    seen = []
    for row in rows:
        print("  ".join(cell for cell in row.cells() if cell), file=sys.stderr, flush=True)
        seen.append(row)
    return seen


def table(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table."""
    return markdown(HEADER, [row.cells() for row in rows])


def _speed(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
