"""What came out of lives with faults, as a table by kind of fault and moment, and as JSON to repeat them by. No torch."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megatron.benchmark.fault_injection.life import Attempt, Life
from megatron.benchmark.output import markdown

COLUMNS = (
    "what happened",
    "when",
    "faults",
    "went on bitwise",
    "saved steps lost",
    "hangs",
    "orphans",
    "restart, s (median)",
)


@dataclass
class Row:
    """The faults of one kind at one kind of moment."""

    faults: int = 0
    bitwise: int = 0
    lost: int = 0  # steps that had been saved and were trained again
    hangs: int = 0
    orphans: int = 0
    restarts: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        restart = f"{statistics.median(self.restarts):.2f}" if self.restarts else ""
        counts = (self.faults, self.bitwise, self.lost, self.hangs, self.orphans)
        return [*(f"{count:,}" for count in counts), restart]


def phase(moment: str) -> str:
    """Say in which part of a run's life a moment lies."""
    if "metrics" in moment or moment == "log":
        return "log"
    if "latest_checkpointed" in moment or moment in ("rename iter.tmp", "fsync ."):
        return "save: publishing"
    if "iter" in moment:
        return "save: tensors" if "rank_" in moment else "save: the rest"
    if moment in ("load", "mkdir .") or "config.json" in moment or "tokenizer" in moment:
        return "start"
    if moment in ("leave", "collective barrier"):
        return "end"
    if moment in ("validate", "read batch"):
        return moment
    return "collective" if moment.startswith("collective") else "step"


def rows(lives: Iterable[Life]) -> dict[tuple[str, str], Row]:
    """Count by (action, phase)."""
    table: dict[tuple[str, str], Row] = defaultdict(Row)
    for life in lives:
        for attempt, following in zip(life.attempts, [*life.attempts[1:], None], strict=True):
            if attempt.fault is None or not attempt.has_fired:
                continue
            when = "under torchrun" if life.is_launched else phase(attempt.fault.moment)
            row = table[attempt.fault.action, when]
            row.faults += 1
            row.bitwise += life.is_right
            row.hangs += len(attempt.hung)
            row.orphans += len(attempt.orphans)
            if following is not None:
                row.lost += following.steps_lost
                if following.first_step_seconds is not None:
                    row.restarts.append(following.first_step_seconds)
    return dict(sorted(table.items()))


def total(table: dict[tuple[str, str], Row]) -> Row:
    """Add up the rows."""
    every = table.values()
    return Row(
        sum(row.faults for row in every),
        sum(row.bitwise for row in every),
        sum(row.lost for row in every),
        sum(row.hangs for row in every),
        sum(row.orphans for row in every),
        [seconds for row in every for seconds in row.restarts],
    )


def to_markdown(lives: Sequence[Life]) -> str:
    """Lay the counts out as a table."""
    table = rows(lives)
    lines = [[*names, *row.cells()] for names, row in table.items()]
    lines.append(["all", "", *total(table).cells()])
    return markdown(COLUMNS, lines)


def describe(attempt: Attempt) -> str:
    """Say in a line what was done to an attempt and what is wrong with it."""
    return (
        f"rank {attempt.rank}: {attempt.fault or 'no fault'}; exit codes {attempt.codes}; checkpoint "
        f"{attempt.committed[0]} -> {attempt.committed[1]}: {'; '.join(attempt.problems)}"
    )
