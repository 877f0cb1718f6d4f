"""How a process of a launch ended, and what follows from it. Knows nothing of torch."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from megatron.cli import (
    EXIT_FAILURE,
    EXIT_HUNG,
    EXIT_LOST_PEER,
    EXIT_SIGNAL,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
)

# Nothing a restart would change: the process has said what is wrong, or did as it was told.
QUIET_CODES = (EXIT_USER_ERROR, EXIT_STOPPED)


@dataclass(frozen=True)
class End:
    """The end of one process: who, where, and its exit code (negative: the signal that killed it)."""

    rank: int
    host: str
    code: int

    def __str__(self) -> str:
        if self.code == EXIT_HUNG:  # all end alike: this one need not be to blame
            return f"the watchdog ended a run that hung (exit code {EXIT_HUNG}); its line names who held it up"
        who = f"rank {self.rank} on {self.host}"
        if self.code < 0:
            return f"{who} was killed by {_signal_name(-self.code)}"
        if self.code == EXIT_LOST_PEER:  # of another node, or the network: here nothing else ended
            return f"{who} ended because another process was lost (exit code {EXIT_LOST_PEER}); its last line says more"
        if self.code > EXIT_SIGNAL:
            return f"{who} left at {_signal_name(self.code - EXIT_SIGNAL)} (exit code {self.code})"
        return f"{who} ended with exit code {self.code}"

    @property
    def is_quiet(self) -> bool:
        return self.code in QUIET_CODES

    @property
    def says_why(self) -> bool:
        """Whether the code means the same as of the whole launch."""
        return self.is_quiet or self.code == EXIT_HUNG

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
