"""The one way out that waits for nobody. No torch.

The commit protocol of checkpoints is what makes the way out safe: a process may end between any two instructions.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def leave_at_once(code: int) -> NoReturn:
    """End this process from any thread, whatever its main thread waits for: nothing is unwound, joined or saved."""
    sys.stderr.flush()
    os._exit(code)
