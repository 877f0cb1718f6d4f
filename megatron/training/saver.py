"""When a run is saved, and what becomes of a save: in the loop's way, or behind it with --async-save.

A save behind it needs the processes to know of each other's progress: they tell it with their votes in every step, so
that all of them go on with the save after the same one.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch.distributed as dist

from megatron.checkpoint.background import BackgroundSave, begin_save
from megatron.checkpoint.retention import Retention, RetentionPolicy
from megatron.checkpoint.save import save_checkpoint
from megatron.checkpoint.save_plan import PlannedSave, plan_save
from megatron.checkpoint.snapshot import HostMemory
from megatron.config import Config, to_json
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.options import CheckpointConfig
from megatron.training.contents import Contents
from megatron.training.kernel_record import KERNELS
from megatron.training.marks import Marks
from megatron.training.run_state import Progress, RunTensors, state_of
from megatron.training.votes import NO_VOTES, Votes

logger = get_logger(__name__)

DELETION_SECONDS = 60.0  # at the end of a run; the other processes wait for rank 0


class RunSaver:
    """Writes checkpoints of one run under --save."""

    def __init__(
        self,
        config: Config,
        contents: Contents,
        tensors: RunTensors,
        marks: Marks,
        *,
        kernels: dict[str, str],
        last_saved: int,
    ) -> None:
        self._config = config
        self._marks = marks
        self._contents = contents
        self._kernels = kernels  # as `kernel_record.record_of` gives them
        self._tensors = tensors
        self._last_begun = self._last_saved = last_saved
        self._plan: PlannedSave | None = None  # the layout of a run stays
        self._memory = HostMemory()
        self._retention = _retention(config.checkpoint) if dist.get_rank() == 0 else None
        self._pending: BackgroundSave | None = None
        # of the pending save: when, and how long training stood still for it
        self._began = self._waited = 0.0
        self._last_vote = last_saved  # the step that this process voted in last
        self._last_stale = 0  # the last one before the pending save came to where it is
        self._heard = NO_VOTES  # what all processes said in the last one since

    def vote(self, votes: Votes) -> Votes:
        """Add to what this process says with the next step how far its part of a save under way is."""
        self._last_vote += 1
        if self._pending is None:
            return votes
        return dataclasses.replace(
            votes,
            written=int(self._pending.is_waiting_for_others),
            failed=int(self._pending.has_failed),
        )

    def hear(self, iteration: int, votes: Votes) -> None:
        """Take what all processes said in a step; steps are heard in order."""
        if iteration > self._last_stale:
            self._heard = votes

    def proceed(self) -> None:
        """Go on with a save under way if all processes have done their part or one has failed.

        Collective over the world when it does: every process has heard the same. A failure is a warning, or with
        --exit-on-failed-save a CheckpointError on every process.
        """
        if self._heard.written == dist.get_world_size() or self._heard.failed > 0:
            self._advance(is_last=False)

    def finish(self) -> None:
        """Wait for a save under way. Collective over the world. CheckpointError on every process if it fails."""
        while self._pending is not None:
            self._advance(is_last=True)

    def settle(self) -> None:
        """Wait for a save under way, whose failure is as in `save_if_due`, and keep all there is until the next one.

        Collective over the world.
        """
        self._make_way()
        if self._retention is not None:
            self._retention.stop()

    def rewind(self, iteration: int) -> None:
        """Go on from an earlier checkpoint: what was saved after it is saved again. No save is under way."""
        assert self._pending is None
        self._last_begun = self._last_saved = self._last_vote = self._last_stale = iteration
        self._heard = NO_VOTES

    def wait_for_deletions(self) -> None:
        """Wait a while for --keep-last and --save-retain-interval to be carried out."""
        if self._retention is None:
            return
        self._retention.clear()
        if not self._retention.wait(DELETION_SECONDS):
            self._retention.stop()  # the folder may soon be another run's
            logger.info("left before older checkpoints could be deleted: another run here does it")

    def save_if_due(self, progress: Progress, *, is_last: bool) -> bool:
        """Save at a multiple of --save-interval and at the end. Collective over the world when it saves, and at the end.

        Says whether the processes spent time on it. A save that fails is a warning, but the last one, or any with
        --exit-on-failed-save, a CheckpointError on every process.
        """
        checkpoint = self._config.checkpoint
        is_due = (
            checkpoint.save_interval is not None
            and progress.iteration % checkpoint.save_interval == 0
        )
        if checkpoint.save is None or not (is_due or is_last):
            return False
        has_work = self._pending is not None or progress.iteration != self._last_begun
        self._make_way()  # its memory is needed, and two would fight for the disk
        if progress.iteration != self._last_begun:
            self._save(progress, Path(checkpoint.save), is_last=is_last)
        return has_work

    def _make_way(self) -> None:
        """Wait for a save under way."""
        while self._pending is not None:
            self._advance(is_last=False)

    def _save(self, progress: Progress, root: Path, *, is_last: bool) -> None:
        self._last_begun, started = progress.iteration, time.monotonic()
        tensors = self._tensors.weights()
        if not self._config.checkpoint.no_save_optim:
            tensors |= self._tensors.optimizer.tensors()
        if self._plan is None:
            self._plan = plan_save(tensors)
        state = state_of(progress, self._tensors, self._contents) | {KERNELS: self._kernels}
        config = to_json(self._config)
        try:
            if not self._config.checkpoint.async_save or is_last:
                folder = save_checkpoint(
                    root, progress.iteration, tensors, state=state, config=config, plan=self._plan
                )
                self._succeeded(folder, f"in {time.monotonic() - started:.1f} s")
                return
            self._pending = begin_save(
                root,
                progress.iteration,
                tensors,
                state=state,
                config=config,
                plan=self._plan,
                memory=self._memory,
            )
            self._began, self._waited = started, time.monotonic() - started
            self._last_stale, self._heard = self._last_vote, NO_VOTES
        except CheckpointError as error:
            self._failed(error, is_last=is_last)

    def _advance(self, *, is_last: bool) -> None:
        """Take a save under way to its next stage, or out of the way."""
        assert self._pending is not None
        started = time.monotonic()
        self._marks.enter("save")  # a slow disk is no step that hangs
        self._last_stale, self._heard = self._last_vote, NO_VOTES
        try:
            folder = self._pending.advance()
        except CheckpointError as error:
            self._pending = None
            self._failed(error, is_last=is_last)
            return
        self._waited += time.monotonic() - started
        if folder is not None:
            self._pending = None
            seconds = time.monotonic() - self._began
            self._succeeded(
                folder, f"in {seconds:.1f} s, which training waited {self._waited:.2f} s of"
            )

    def _succeeded(self, folder: Path, how: str) -> None:
        self._last_saved = self._last_begun
        logger.info(f"saved {folder} {how}")
        if self._retention is not None:
            self._retention.published(self._last_saved)

    def _failed(self, error: CheckpointError, *, is_last: bool) -> None:
        """Say that there is no checkpoint of a step, or raise."""
        checkpoint = self._config.checkpoint
        if is_last or checkpoint.exit_on_failed_save:
            raise error
        if dist.get_rank() == 0:
            last = self._last_saved
            newest = (
                f"the newest whole checkpoint is iteration {last}" if last else "there is none yet"
            )
            logger.warning(
                f"NOT SAVED: iteration {self._last_begun}: {error}. Training goes on and is saved again after "
                f"{checkpoint.save_interval} steps; {newest}"
            )


def _retention(options: CheckpointConfig) -> Retention | None:
    """Prepare what deletes checkpoints of a run, if anything is to be."""
    if options.save is None or options.keep_last is options.save_retain_interval is None:
        return None
    policy = RetentionPolicy(options.keep_last or 1, options.save_retain_interval)
    return Retention(Path(options.save), policy)
