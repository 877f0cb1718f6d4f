"""SIGINT, SIGTERM and SIGUSR1 ask a run to save and leave; the processes agree on it inside a step, and know it one later."""

from __future__ import annotations

import signal
from types import FrameType

from megatron.logging import get_logger

logger = get_logger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Remember that a signal arrived. A context manager: the old handlers return at its end."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            logger.info(f"{self.received.name}: will save and leave within two steps")
