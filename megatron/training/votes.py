"""What the processes of a run tell each other with every step, in the reduction that the step needs anyway.

A field is a number that each process gives and that all of them get the sum of. Knows nothing of why anyone votes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Votes:
    """One process's say, or, as the result of a step, the sum over all processes."""

    stop: int = 0  # asked to leave, by a signal or the clock
    written: int = 0  # has its part of the checkpoint under way on disk
    failed: int = 0  # could not write its part


NO_VOTES = Votes()
