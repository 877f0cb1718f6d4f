"""Which checkpoints of a run are kept: older ones go when a newer one has been read back from disk and is whole.

Order is that of iterations, never of clocks. One process of a run does it, in a thread: reading a checkpoint back takes
as long as loading it. Knows nothing of tensors.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from megatron.checkpoint.background import Job
from megatron.checkpoint.checksums import forget_cached
from megatron.checkpoint.files import fsync_folder
from megatron.checkpoint.layout import checkpoint_folder, saved_iterations
from megatron.checkpoint.verify import verify_files
from megatron.errors import CheckpointError
from megatron.logging import get_logger

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


def delete_obsolete(root: Path, policy: RetentionPolicy, whole: int) -> list[int]:
    """Delete what may go once the checkpoint of iteration `whole` is known to be whole. Gives what was deleted.

    A folder first loses the name that counts: whatever step a crash follows, no half of one is taken for a checkpoint.
    """
    obsolete = policy.obsolete(saved_iterations(root), whole)
    for iteration in obsolete:
        folder = checkpoint_folder(root, iteration)
        folder.rename(root / f"{folder.name}.deleted-{uuid.uuid4().hex[:8]}")
    fsync_folder(root)
    for folder in list(root.iterdir()):
        if _DELETED.fullmatch(folder.name):
            shutil.rmtree(folder)
    return obsolete


class Retention:
    """Carries a policy out behind a run."""

    def __init__(self, root: Path, policy: RetentionPolicy) -> None:
        self._root, self._policy = root, policy
        self._published: int | None = None  # the newest that nobody has looked at yet
        self._job: Job[None] | None = None

    def published(self, iteration: int) -> None:
        """Begin to read a new checkpoint back, or after the one that is being read."""
        self._published = iteration
        if self._job is None or self._job.is_done:
            self._job = Job(self._work)

    def wait(self, seconds: float | None) -> bool:
        """Wait for what has begun, not longer than a number of seconds; say whether it came to an end."""
        return self._job is None or self._job.wait(seconds)

    def _work(self) -> None:
        while self._published is not None:
            iteration, self._published = self._published, None
            folder = checkpoint_folder(self._root, iteration)
            try:
                for path in folder.iterdir():
                    forget_cached(path)
                verify_files(folder)
                deleted = delete_obsolete(self._root, self._policy, iteration)
            except (CheckpointError, OSError) as error:
                logger.warning(f"older checkpoints than {folder} are kept: {error}")
                continue
            if deleted:
                names = ", ".join(map(str, deleted))
                logger.info(f"{folder} reads back whole; deleted checkpoints of iterations {names}")
