"""What the processes of a run tell each other: with every step, and where there is none.

`Votes` go in the reduction that a step needs anyway: a field is a number that each process gives and that all of them
get the sum of. `StopVote` goes from host to host, in work that no such reduction reaches, as validation. Knows nothing
of why anyone votes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Votes:
    """One process's say, or, as the result of a step, the sum over all processes."""

    stop: int = 0  # asked to leave, by a signal or the clock
    written: int = 0  # has its part of the checkpoint under way on disk
    failed: int = 0  # could not write its part


NO_VOTES = Votes()


class StopVote:
    """Asks the processes whether one of them was asked to leave. Devices have no part in it, so none is waited for."""

    def __init__(self, wants_stop: Callable[[], bool]) -> None:
        """wants_stop: this process's say."""
        self.is_agreed = False  # once it is, on every process alike
        self._wants_stop = wants_stop
        self._asked: tuple[dist.Work, Tensor] | None = None

    def ask_ahead(self) -> bool:
        """Give the answer to what was asked before, and ask again without waiting. Collective over the world."""
        self._take()
        flag = torch.tensor(float(self._wants_stop()))
        work = dist.all_reduce(flag, async_op=True)
        self._asked = (work, flag)
        return self.is_agreed

    def ask(self) -> bool:
        """Ask, and wait for the answer. Collective over the world."""
        self.ask_ahead()
        self._take()
        return self.is_agreed

    def _take(self) -> None:
        if self._asked is None:
            return
        work, flag = self._asked
        work.wait()
        self.is_agreed = self.is_agreed or flag.item() > 0
        self._asked = None
