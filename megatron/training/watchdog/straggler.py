"""Which process is slower than its equals: its own time in a step, without what it waits for others.

Own time is sampled: a thread looks, many times a second, whether the main thread waits. Where the host only queues
work for a GPU, it is the host's time that is compared: reading data, Python, queueing.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.training.watchdog.board import Report

FACTOR = 1.5  # times the median of the processes of the same pipeline stage
LEAST_SHARE = 0.1  # of a step that the difference makes up
WINDOW_SECONDS = 10.0  # in steps: some hundred samples
WINDOW_STEPS = 5
NUM_WINDOWS = 2  # in a row


@dataclass(frozen=True)
class Straggler:
    """A process that holds up its equals."""

    report: Report
    own_seconds: float  # a step
    median_seconds: float  # a step, of the processes of its stage
    is_new: bool  # it was none in the window before

    @property
    def described(self) -> str:
        return (
            f"{self.report.name} is a straggler: it needs {self.own_seconds:.3g} s of its own for a step, others of "
            f"its pipeline stage {self.median_seconds:.3g} s"
        )


class Stragglers:
    """Compares the processes window by window."""

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._start: dict[int, Report] = {}
        self._num_slow: dict[int, int] = {}  # windows in a row

    def judge(self, reports: Sequence[Report]) -> list[Straggler]:
        """Give the slow ones of the window that these reports end; nothing while it goes on."""
        if self._start.keys() != {report.rank for report in reports}:
            self._start = {report.rank: report for report in reports}
            return []
        own: dict[int, dict[Report, float]] = defaultdict(dict)  # by stage
        steps: list[float] = []
        for report in reports:
            start = self._start[report.rank]
            num_steps = report.num_steps - start.num_steps
            seconds = report.step_seconds - start.step_seconds
            if num_steps < WINDOW_STEPS or seconds < self._window_seconds:
                return []
            own[report.stage][report] = (report.own_seconds - start.own_seconds) / num_steps
            steps.append(seconds / num_steps)
        self._start = {report.rank: report for report in reports}
        least = LEAST_SHARE * statistics.median(steps)
        slow = [one for stage in own.values() for one in self._slow_of(stage, least)]
        self._num_slow = {one.rank: self._num_slow.get(one.rank, 0) + 1 for one, _, _ in slow}
        return [
            Straggler(one, seconds, median, is_new=self._num_slow[one.rank] == NUM_WINDOWS)
            for one, seconds, median in slow
            if self._num_slow[one.rank] >= NUM_WINDOWS
        ]

    def _slow_of(
        self, stage: dict[Report, float], least: float
    ) -> list[tuple[Report, float, float]]:
        median = statistics.median_low(stage.values())
        return [
            (report, seconds, median)
            for report, seconds in stage.items()
            if seconds > FACTOR * median and seconds - median > least
        ]
