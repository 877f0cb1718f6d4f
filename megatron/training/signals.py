"""SIGINT, SIGTERM and SIGUSR1. In training they ask a run to save and leave; before it, and a second time, they end it.

A thread hears them: Python runs no handler while its main thread waits in a rendezvous or a collective. No torch.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from threading import Thread
from types import FrameType

from megatron.cli import EXIT_SIGNAL, leave_at_once
from megatron.logging import get_logger

logger = get_logger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# One request may come twice: Slurm signals all processes of a job, and torchrun its workers when it gets a signal.
ECHO_SECONDS = 2.0
Handler = Callable[[int, FrameType | None], None]


class SignalThread:
    """Hands the stop signals to a function, in a thread of its own. A context manager of the main thread, may nest."""

    def __init__(
        self, hear: Callable[[signal.Signals], None], handler: Handler | None = None
    ) -> None:
        """handler: what the main thread runs besides, once it runs Python again."""
        self._hear = hear
        self._handler = handler or _heard_elsewhere
        self._previous: dict[signal.Signals, object] = {}
        self._previous_descriptor = -1

    def __enter__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_descriptor = signal.set_wakeup_fd(
            self._sender.fileno(), warn_on_full_buffer=False
        )
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handler)
        self._thread = Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._previous_descriptor)
        self._sender.close()
        self._thread.join()
        self._receiver.close()

    def _listen(self) -> None:
        while numbers := self._receiver.recv(64):
            for number in numbers:
                if number in STOP_SIGNALS:
                    self._hear(signal.Signals(number))


def _heard_elsewhere(_number: int, _frame: FrameType | None) -> None:
    """Keep the signal from its default action."""


def leaving_at_once() -> SignalThread:
    """While nothing is trained, end the process at a signal, with 128 + its number."""

    def leave(number: signal.Signals) -> None:
        logger.info(f"{number.name} outside of training: left at once; what was saved is whole")
        leave_at_once(EXIT_SIGNAL + number)

    return SignalThread(leave)


class StopRequest:
    """Whether this process was asked to leave: by a signal, or by the clock. The second signal ends it."""

    def __init__(
        self, exit_duration_in_mins: float | None = None, started: float | None = None
    ) -> None:
        """Count the minutes from started, by time.monotonic(); from here, if it is None."""
        self._deadline: float | None = None
        if exit_duration_in_mins is not None:
            start = time.monotonic() if started is None else started
            self._deadline = start + 60.0 * exit_duration_in_mins
        self._is_signalled = False
        self._first_signal: float | None = None
        self._thread = SignalThread(self._hear, self._note)

    @property
    def is_made(self) -> bool:
        is_overtime = self._deadline is not None and time.monotonic() > self._deadline
        return self._is_signalled or is_overtime

    def __enter__(self) -> StopRequest:
        self._thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.__exit__()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._is_signalled = True

    def _hear(self, number: signal.Signals) -> None:
        self._is_signalled = True
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
            logger.info(f"{number.name}: will save and leave; a second signal leaves at once")
        elif now - self._first_signal > ECHO_SECONDS:
            logger.info(
                f"{number.name} again: left at once; the last checkpoint that was saved is whole"
            )
            leave_at_once(EXIT_SIGNAL + number)
