"""Writing a checkpoint while training goes on: its tensors are copied first, then a thread of each process writes them.

A thread suffices, and shares the copy: hashing, writing and forcing to disk all leave Python's lock to others. No
thread communicates; whoever owns the save tells the others how far it is, and calls `advance` on all together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from megatron.checkpoint.save import (
    SideFolder,
    WrittenFile,
    encode_values,
    open_side_folder,
    publish,
    write_part,
)
from megatron.checkpoint.save_plan import PlannedSave, part_values
from megatron.checkpoint.snapshot import HostMemory, Snapshot
from megatron.errors import MegatronError
from megatron.parallel.agreement import gather_on_first, on_first_rank

T = TypeVar("T")


class Job(Generic[T]):
    """Something done in a thread of its own."""

    def __init__(self, action: Callable[[], T]) -> None:
        """Start it. The thread does not keep the process alive: what is unfinished at its end counts as not done."""
        self._action = action
        self._results: list[T] = []
        self._failure: MegatronError | OSError | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        return self.is_done and not self._results

    def wait(self, seconds: float | None) -> bool:
        """Wait, but not longer than a number of seconds; say whether it is done."""
        self._thread.join(seconds)
        return self.is_done

    def result(self) -> T:
        """Wait for the result. Raises what the action raised if a user can cause it, else RuntimeError."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if not self._results:
            raise RuntimeError("a thread failed that writes a checkpoint; its traceback says how")
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._action())
        except (MegatronError, OSError) as error:
            self._failure = error  # for whoever asks


class BackgroundSave:
    """A checkpoint that is being written. Every process first writes its part; then rank 0 publishes."""

    def __init__(
        self,
        side: SideFolder,
        plan: PlannedSave,
        snapshot: Snapshot,
        values: Mapping[str, bytes],
    ) -> None:
        """Begin to write. values: the files of JSON, rank 0's count."""
        self.iteration = side.iteration
        self._side, self._plan, self._values = side, plan, values
        self._part = Job(lambda: _write(side, plan, snapshot))
        self._publication: Job[Path] | None = None
        self._is_handed_over = False  # all parts are written

    @property
    def is_waiting_for_others(self) -> bool:
        """Whether this process has done what it can until the next `advance`."""
        if not self._is_handed_over:
            return self._part.is_done and not self._part.has_failed
        return self._publication is None or (
            self._publication.is_done and not self._publication.has_failed
        )

    @property
    def has_failed(self) -> bool:
        """Whether this process could not do what it had to."""
        job = self._publication if self._is_handed_over else self._part
        return job is not None and job.has_failed

    def advance(self) -> Path | None:
        """Go on: from the parts to the publication, which gives None, or from there to the end, which gives the folder.

        Collective over the world; waits for whoever is not done. Every process raises the same CheckpointError if
        one has failed, and the unfinished checkpoint is removed.
        """
        folder, is_good = None, False
        try:
            if self._is_handed_over:
                folder = self._finish()
            else:
                self._hand_over()
            is_good = True
        finally:
            if not is_good:
                self._side.discard()
        return folder

    def _hand_over(self) -> None:
        written = gather_on_first(self._part.result)
        self._is_handed_over = True
        if written:  # rank 0
            self._publication = Job(lambda: publish(self._side, self._plan, written, self._values))

    def _finish(self) -> Path:
        publication = self._publication
        return on_first_rank(lambda: publication.result() if publication else Path())


def begin_save(
    root: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    *,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    plan: PlannedSave,
    memory: HostMemory,
) -> BackgroundSave:
    """Copy tensors to the host's memory and begin to write them. Collective over the world.

    state and config: as of `save_checkpoint`. plan: of a save of the same tensors. memory: no other save may be
    reading from it.
    """
    values = encode_values(state, config)
    side = open_side_folder(root, iteration)
    return BackgroundSave(side, plan, memory.copy(part_values(plan, tensors)), values)


def _write(side: SideFolder, plan: PlannedSave, snapshot: Snapshot) -> Sequence[WrittenFile]:
    snapshot.wait()
    return write_part(side, plan, snapshot.pieces)
