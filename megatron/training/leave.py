"""Leaving: the codes a run ends with, and the one way out that waits for nobody. No torch.

The commit protocol of checkpoints is what makes the way out safe: a process may end between any two instructions.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: come again
EXIT_LOST_PEER = (
    76  # EX_PROTOCOL of sysexits.h: another process failed, this one had to end with it
)
EXIT_HUNG = 124  # what timeout(1) gives
EXIT_SIGNAL = 128  # + the signal's number, as a shell reports it


def leave_at_once(code: int) -> NoReturn:
    """End this process from any thread, whatever its main thread waits for: nothing is unwound, joined or saved."""
    sys.stderr.flush()
    os._exit(code)
