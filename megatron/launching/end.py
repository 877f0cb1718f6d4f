"""How a process of a launch ended, and what follows from it. Knows nothing of torch."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from megatron.cli import EXIT_FAILURE, EXIT_USER_ERROR

EXIT_STOPPED = 75  # left early because it was asked to, having saved
EXIT_LOST_PEER = 76  # another process failed
EXIT_SIGNAL = 128  # plus the signal: left at once, having saved nothing
# Nothing a restart would change: the process has said what is wrong, or did as it was told.
QUIET_CODES = (EXIT_USER_ERROR, EXIT_STOPPED)


@dataclass(frozen=True)
class End:
    """The end of one process: who, where, and its exit code (negative: the signal that killed it)."""

    rank: int
    host: str
    code: int

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.host}"
        if self.code < 0:
            return f"{who} was killed by {_signal_name(-self.code)}"
        return f"{who} ended with exit code {self.code}"

    @property
    def is_quiet(self) -> bool:
        return self.code in QUIET_CODES

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> End:
        return cls(**json.loads(text))


def cause(ends: Iterable[End]) -> End:
    """Give the end that explains the others: those who lose a peer fail too, and the last are told to leave."""
    return min(ends, key=lambda end: (_follows(end.code), end.rank))


def _follows(code: int) -> int:
    """Rank how likely an end follows from another one's."""
    order = (
        EXIT_USER_ERROR,
        EXIT_FAILURE,
        EXIT_LOST_PEER,
        EXIT_STOPPED,
        EXIT_SIGNAL + signal.SIGTERM,  # how a launcher ends the others
        -signal.SIGTERM,
    )
    return order.index(code) + 1 if code in order else 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
