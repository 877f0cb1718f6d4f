"""torchrun with a short end: python tools/launch.py <torchrun's options> tools/pretrain_gpt.py <flags>.

torchrun ends every failed launch with a traceback of its own and exit code 1. Here a launch that was told to stop, that
saved and left, or that a user's mistake ended, ends in silence with the exit code of its processes: they have said
why. Anything else keeps torchrun's report of which rank failed first.
"""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

QUIET_CODES = {2, 75}  # a user's mistake; saved and left when asked


def main() -> int:
    """Launch, and give the exit code."""
    try:
        run.main()
    except SignalException as stop:
        return 128 + stop.sigval.value
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in QUIET_CODES:
            raise
        return first.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
