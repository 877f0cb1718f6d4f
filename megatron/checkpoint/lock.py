"""One run for each folder: the lock that a run holds on the folder it saves to.

A POSIX record lock: the system drops it however its process ends, a network file system when it no longer hears from
the host, and it is not inherited by processes that are forked off. No torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from megatron.checkpoint.files import writing
from megatron.errors import CheckpointError
from megatron.logging import get_logger

logger = get_logger(__name__)

LOCK_FILE = "writer.lock"

_HELD = {errno.EACCES, errno.EAGAIN}


class FolderLock:
    """Held from its making to `release` or the end of the process."""

    def __init__(self, root: Path) -> None:
        """Take the lock. Raises CheckpointError if another process has it, naming that.

        On a file system without locks it says so and goes on. No process may open the file another time: closing it
        would drop the lock.
        """
        path = root / LOCK_FILE
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                holder = os.read(self._descriptor, 200).decode(errors="replace").strip()
                os.close(self._descriptor)
                raise CheckpointError(
                    f"{root} is being written by {holder or 'another run'}; wait for it to end, end it, or give "
                    f"another --save"
                ) from None
            logger.warning(
                f"{path} cannot be locked ({error.strerror}): nothing keeps a second run from writing to {root}"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        # A full disk is no reason to stop: the lock is what counts.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            text = f"process {os.getpid()} on {socket.gethostname()}, started {since}\n"
            os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Let others have it. The file stays: whoever removed it could remove another's."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
