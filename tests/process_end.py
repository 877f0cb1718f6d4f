"""Whether processes that a test did not start have ended."""

import contextlib
import os
import select
from collections.abc import Iterable

LIMIT_SECONDS = 60  # of what takes a moment


def have_ended(pids: Iterable[int], seconds: float = LIMIT_SECONDS) -> bool:
    """Wait for their ends: who has closed its files, or is killed, may be there for a moment. False if one stays."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            ended, _, _ = select.select([descriptor], [], [], seconds)
            os.close(descriptor)
            if not ended:
                return False
    return True


def is_running(pid: int) -> bool:
    return not have_ended([pid], 0)
