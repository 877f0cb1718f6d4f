"""A vote on leaving from host to host: for work that no step's reduction reaches, such as validation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


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
