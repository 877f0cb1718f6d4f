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
# How long the end of another process is waited for. One that was killed on this host may still wait for its disk; of a
# host that was lost, a file server learns when a lease runs out (90 s with NFS), and the job may be back before that.
LOCAL_SECONDS, REMOTE_SECONDS = 5.0, 150.0

_HELD = {errno.EACCES, errno.EAGAIN}
_POLL_SECONDS = 0.5


class FolderLock:
    """Held from its making to `release` or the end of the process."""

    def __init__(self, root: Path) -> None:
        """Take the lock. Raises CheckpointError if another process keeps it, naming that.

        On a file system without locks it says so and goes on. No process may open the file another time: closing it
        would drop the lock.
        """
        path = root / LOCK_FILE
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            is_taken = self._take(root)
        except OSError as error:
            is_taken = True
            logger.warning(
                f"{path} cannot be locked ({error.strerror}): nothing keeps a second run from writing to {root}"
            )
        if not is_taken:
            holder = self._holder()
            os.close(self._descriptor)
            raise CheckpointError(
                f"{root} is being written by {holder}; wait for it to end, end it, or give another --save"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        # A full disk is no reason to stop: the lock is what counts.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            text = f"process {os.getpid()} on {socket.gethostname()}, started {since}\n"
            os.pwrite(self._descriptor, text.encode(), 0)

    def _take(self, root: Path) -> bool:
        """Try to lock the file, for as long as its holder may be one that is ending; say whether it worked."""
        waited = 0.0
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _HELD:
                    raise
            else:
                return True
            holder = self._holder()
            is_here = f" on {socket.gethostname()}," in holder or " on " not in holder
            patience = LOCAL_SECONDS if is_here else REMOTE_SECONDS
            if waited >= patience:
                return False
            if waited == 0.0:
                logger.info(
                    f"{root} is held by {holder}: waiting up to {patience:.0f} s for its end"
                )
            time.sleep(_POLL_SECONDS)
            waited += _POLL_SECONDS

    def _holder(self) -> str:
        """Name whoever has the lock, as far as it said so."""
        text = ""
        with contextlib.suppress(OSError):
            text = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
        return text or "another run"

    def release(self) -> None:
        """Let others have it. The file stays: whoever removed it could remove another's."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
