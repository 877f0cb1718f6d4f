"""What shall happen to a process, and at which of its moments. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal[
    "kill",  # SIGKILL: what was written stays, nothing more is
    "tear",  # half of what is being written reaches the disk, then SIGKILL
    "lose data",  # power fails: names reached the disk, content that was not forced there did not
    "lose names",  # power fails: neither names nor content that were not forced to the disk are there
    "lose older names",  # the same, but the newest of these names is there
    "full",  # the disk is full: ENOSPC
    "broken",  # the disk fails: EIO
    "memory",  # MemoryError
    "error",  # an exception that nobody expects
    "terminate",  # SIGTERM to this process alone
    "stop",  # SIGSTOP: it hangs and says nothing
]
# Nothing of the process runs on.
DEADLY: tuple[Action, ...] = ("kill", "tear", "lose data", "lose names", "lose older names")
FAILING_DISK: tuple[Action, ...] = ("full", "broken")

# The first word of a moment says what is about to happen. Files of the run's folder follow it by name, with "iter" for
# any iteration and ".tmp" for any side folder: "rename iter.tmp", "fsync latest_checkpointed_iteration.txt.tmp".
FILE_WORDS = ("open", "write", "fsync", "rename", "mkdir", "remove", "rmdir")


@dataclass(frozen=True)
class Fault:
    """One action at the n-th time that a process comes to a moment."""

    moment: str
    occurrence: int
    action: Action

    def __str__(self) -> str:
        return f"{self.action} at {self.moment} #{self.occurrence}"

    @property
    def is_on_disk(self) -> bool:
        """Whether the process is about to change a file then."""
        return self.moment.split()[0] in FILE_WORDS
