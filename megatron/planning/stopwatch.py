"""Median times of repeated calls on a device, within a budget.

Knows nothing of what is timed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

NUM_WARM_UP = 2  # calls that may choose kernels, compile them or grow the allocator
FEWEST, MOST = 3, 200  # timed calls


@dataclass(frozen=True)
class Stopwatch:
    """Times calls by CUDA's events on a GPU, by the clock elsewhere."""

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
        if self.device.type == "cuda":
            return self._by_events(work, number)
        times = []
        for _ in range(number):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def _by_events(self, work: Callable[[], object], number: int) -> float:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
        torch.cuda.synchronize(self.device)
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        torch.cuda.synchronize(self.device)
        between = itertools.pairwise(events)
        return statistics.median(start.elapsed_time(end) for start, end in between) / 1e3


def num_calls(estimate: float, budget: float) -> int:
    """Give how many calls of an estimated length to time within a budget, both in seconds."""
    return max(FEWEST, min(MOST, int(budget / max(estimate, 1e-9))))
