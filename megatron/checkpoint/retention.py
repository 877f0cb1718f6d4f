"""Which checkpoints of a run are kept: older ones go when a newer one has been read back from disk and is whole.

Order is that of iterations, never of clocks. One process of a run does it, in a thread: reading a checkpoint back takes
as long as loading it. Knows nothing of tensors.
"""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from megatron.checkpoint.background import Job
from megatron.checkpoint.checksums import forget_cached
from megatron.checkpoint.layout import checkpoint_folder, saved_iterations
from megatron.checkpoint.verify import verify_files
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.whole_file import force_to_disk

logger = get_logger(__name__)

_DELETED = re.compile(r"iter_\d{7,}(\.old)?\.deleted-[0-9a-f]{8}")


@dataclass(frozen=True)
class RetentionPolicy:
    """What is kept: the newest keep_last, all multiples of interval, and what a run did not write (iteration 0)."""

    keep_last: int
    interval: int | None = None

    def obsolete(self, iterations: list[int], whole: int) -> list[int]:
        """Name those that may go once the checkpoint of iteration `whole` is known to be whole, oldest first."""
        older = sorted(iteration for iteration in iterations if iteration <= whole)
        return [
            iteration
            for iteration in older[: -self.keep_last]
            if iteration > 0 and (self.interval is None or iteration % self.interval > 0)
        ]


def retire_obsolete(root: Path, policy: RetentionPolicy, whole: int) -> list[int]:
    """Take the names that count from what may go once the checkpoint of iteration `whole` is known to be whole.

    Gives what may go. Whatever step a crash follows, no half of a checkpoint is taken for one.
    """
    obsolete = policy.obsolete(saved_iterations(root), whole)
    for iteration in obsolete:
        folder = checkpoint_folder(root, iteration)
        folder.rename(root / f"{folder.name}.deleted-{uuid.uuid4().hex[:8]}")
    force_to_disk(root)
    return obsolete


def delete_retired(root: Path) -> None:
    """Delete what has no name that counts any more, of earlier runs too; raise the last OSError when all were tried."""
    failure: OSError | None = None
    for folder in list(root.iterdir()):
        if _DELETED.fullmatch(folder.name):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure


class Retention:
    """Carries a policy out behind a run."""

    def __init__(self, root: Path, policy: RetentionPolicy) -> None:
        self._root, self._policy = root, policy
        self._lock = threading.Lock()  # of the three below, and of the names in root
        self._published: int | None = None  # the newest that nobody has looked at yet
        self._read: int | None = None  # the one being looked at, behind which others may go
        self._is_idle = True
        self._job: Job[None] | None = None

    def published(self, iteration: int) -> None:
        """Begin to read a new checkpoint back, or after the one that is being read."""
        with self._lock:
            self._published, starts, self._is_idle = iteration, self._is_idle, False
        if starts:
            self._job = Job(self._work)

    def stop(self) -> None:
        """Leave all checkpoints that are there, until another one is published. Waits for a few renames at most."""
        with self._lock:
            self._published = self._read = None

    def clear(self) -> None:
        """Delete what an earlier run took the names of and had no time to delete, unless that has begun already."""
        if self._job is not None:
            return
        try:
            delete_retired(self._root)
        except OSError as error:
            logger.warning(f"older checkpoints in {self._root} cannot be deleted: {error}")

    def wait(self, seconds: float | None) -> bool:
        """Wait for what has begun, not longer than a number of seconds; say whether it came to an end."""
        return self._job is None or self._job.wait(seconds)

    def _work(self) -> None:
        while (iteration := self._next()) is not None:
            folder = checkpoint_folder(self._root, iteration)
            try:
                for path in folder.iterdir():
                    forget_cached(path)
                verify_files(folder)
                with self._lock:
                    is_stopped = self._read is None
                    retired = (
                        [] if is_stopped else retire_obsolete(self._root, self._policy, iteration)
                    )
                delete_retired(self._root)
            except (CheckpointError, OSError) as error:
                logger.warning(f"older checkpoints than {folder} are kept: {error}")
                continue
            if retired:
                names = ", ".join(map(str, retired))
                logger.info(f"{folder} reads back whole; deleted checkpoints of iterations {names}")

    def _next(self) -> int | None:
        with self._lock:
            self._read, self._published = self._published, None
            self._is_idle = self._read is None
            return self._read
