"""Marks that the main thread leaves on its way, for threads that watch it. No torch, no clock: who reads counts time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["start", "load", "step", "validate", "log", "save", "leave"]


@dataclass(frozen=True)
class Mark:
    """What the main thread began last."""

    number: int  # of marks so far: another number, and the thread has moved
    phase: Phase
    iteration: int
    consumed_samples: int

    @property
    def described(self) -> str:
        """Name it for people: `step 7`, `validate after step 7`."""
        if self.phase == "step":
            return f"step {self.iteration}"
        return self.phase if self.iteration == 0 else f"{self.phase} after step {self.iteration}"


class Marks:
    """The last mark, and what was logged last. Each attribute is replaced whole, so readers need no lock."""

    def __init__(self) -> None:
        self.current = Mark(0, "start", 0, 0)
        self.metrics: Mapping[str, Any] = {}  # of the last log line
        self.remarks: deque[Mapping[str, Any]] = deque()  # of the watch, for the next log line

    def enter(
        self, phase: Phase, iteration: int | None = None, consumed_samples: int | None = None
    ) -> None:
        """Leave a mark. Without numbers those of the last one stay."""
        last = self.current
        self.current = Mark(
            last.number + 1,
            phase,
            last.iteration if iteration is None else iteration,
            last.consumed_samples if consumed_samples is None else consumed_samples,
        )
