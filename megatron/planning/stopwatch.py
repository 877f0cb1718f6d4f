"""Median times of repeated calls on a device, within a budget.

Knows nothing of what is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron.timeline import Timeline

NUM_WARM_UP = 2  # calls that may choose kernels, compile them or grow the allocator
FEWEST, MOST = 3, 200  # timed calls


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on one device."""

    device: torch.device

    def median(self, work: Callable[[], object], budget: float) -> float:
        """Give the median seconds of a call, repeated for about budget seconds. Synchronises the device."""
        for _ in range(NUM_WARM_UP):
            estimate = self.once(work)
        return self.repeated(work, num_calls(estimate, budget))

    def once(self, work: Callable[[], object]) -> float:
        """Time one call. Synchronises the device."""
        return self.repeated(work, 1)

    def repeated(self, work: Callable[[], object], number: int) -> float:
        """Give the median seconds of so many calls, one right after another. Synchronises the device."""
        timeline = Timeline(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        timeline.mark("start")
        for _ in range(number):
            work()
            timeline.mark("call")
        return statistics.median(seconds for _, seconds in timeline.laps())


def num_calls(estimate: float, budget: float) -> int:
    """Give how many calls of an estimated length to time within a budget, both in seconds."""
    return max(FEWEST, min(MOST, int(budget / max(estimate, 1e-9))))
