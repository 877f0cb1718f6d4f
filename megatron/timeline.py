"""Moments on a device's timeline, read when all is over: timing does not make the host wait for a GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import pairwise

import torch


class Timeline:
    """Marks the ends of what a device does, one after another, each by a name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []
        self._events: list[torch.cuda.Event] = []  # on a GPU
        self._times: list[float] = []  # on a CPU

    @property
    def last(self) -> str:
        """The name of the last mark."""
        return self._names[-1]

    def mark(self, name: str) -> None:
        """Say that what the device was given since the last mark is called `name`. The first mark starts the time."""
        self._names.append(name)
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def laps(self) -> list[tuple[str, float]]:
        """Give (name, seconds since the mark before) of each mark but the first. Synchronises the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            events = self._events
            ms = [before.elapsed_time(after) for before, after in pairwise(events)]
            seconds = [value / 1e3 for value in ms]
        else:
            times = self._times
            seconds = [after - before for before, after in pairwise(times)]
        return list(zip(self._names[1:], seconds, strict=True))

    def totals(self) -> dict[str, float]:
        """Sum the laps by name, in seconds. Synchronises the device."""
        sums: dict[str, float] = defaultdict(float)
        for name, seconds in self.laps():
            sums[name] += seconds
        return dict(sums)
