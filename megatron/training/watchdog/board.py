"""What processes tell each other beside their collectives: in the store of the rendezvous, while main threads hang.

A connection of its own, since one that waits holds up whoever shares it. Calls may block or raise RuntimeError when
the process that holds the store is gone. Knows nothing of why anything is posted.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

Kind = Literal["hung", "lost", "failed"]
ALARM, SPOKEN = "watch/alarm", "watch/spoken"


@dataclass(frozen=True)
class Report:
    """Where one process stands, as it says itself."""

    rank: int
    host: str
    pid: int
    stage: int  # of the pipeline
    beat: int  # grows as long as the process lives
    phase: str  # described mark
    iteration: int
    age: float  # seconds at the mark
    place: str
    collective: str | None  # that it waits in
    own_seconds: float  # in steps so far, waiting left out
    step_seconds: float
    num_steps: int

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Alarm:
    """Why all processes have to end."""

    kind: Kind
    rank: int  # who found out
    text: str


class Board:
    """The store, as one process sees it."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self._rank = rank
        self._keys = [f"watch/{number}" for number in range(world_size)]

    def post(self, report: Report) -> None:
        self._store.set(self._keys[self._rank], json.dumps(dataclasses.asdict(report)))

    def reports(self) -> list[Report]:
        """Give the last report of every process that posted one, in rank order."""
        keys = self._keys
        if not self._store.check(keys):
            keys = [key for key in keys if self._store.check([key])]
        return [Report(**json.loads(value)) for value in self._store.multi_get(keys)]

    def raise_alarm(self, alarm: Alarm) -> None:
        """Post an alarm unless there is one: the first tells most."""
        self._store.compare_set(ALARM, "", json.dumps(dataclasses.asdict(alarm)))

    def alarm(self) -> Alarm | None:
        if not self._store.check([ALARM]):
            return None
        return Alarm(**json.loads(self._store.get(ALARM)))

    def say_spoken(self) -> None:
        self._store.set(SPOKEN, "1")

    @property
    def is_spoken(self) -> bool:
        return bool(self._store.check([SPOKEN]))
