"""Where a run starts: which checkpoint it continues, and whether the two belong together. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.checkpoint.checksums import read_state
from megatron.checkpoint.layout import (
    METADATA_FILE,
    TRACKER,
    checkpoint_folder,
    latest_iteration,
    saved_iterations,
)
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.optimizer.schedule import Schedule
from megatron.training.fingerprint import Contents, Fingerprint, Rule, read_fingerprint, rules_for
from megatron.training.inputs import Inputs

logger = get_logger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run starts: at zero, at its own checkpoint, or (fine-tuning) with the weights of another."""

    folder: Path | None  # the checkpoint to read
    state: dict[str, Any]  # its state.json
    schedule: Schedule
    contents: Contents  # of the files that this process opened
    opt_outs: tuple[str, ...] = ()  # SHA-256 of the lists that it read
    takes_optimizer: bool = False
    takes_progress: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """(iteration, consumed samples) of the checkpoint, (-1, -1) without one."""
        if self.folder is None:
            return (-1, -1)
        return (self.state["iteration"], self.state["consumed_samples"])


def plan_start(inputs: Inputs, world_size: int) -> Start:
    """Resolve the schedule and find the checkpoint to start from. Raises CheckpointError; no collective."""
    config = inputs.config
    batch_size = config.global_batch_size(config.parallel.data_parallel_size(world_size))
    schedule = Schedule.create(config.optimizer, config.training, batch_size)
    return find_start(Fingerprint(config, schedule, batch_size, inputs.contents))


def find_start(ours: Fingerprint) -> Start:
    """Find what --load and --save ask to start from, and check that it belongs to this run. No collective.

    A run that saved something goes on from there, also if it began with the weights of another (--finetune, or a
    --load that is not its --save): the same command continues. A checkpoint that was converted from elsewhere has
    weights only: a run starts from it at iteration 0, with --finetune or without, as from Megatron's `release`.
    Raises CheckpointError when the two do not fit.
    """
    options = ours.config.checkpoint
    assert ours.schedule is not None and ours.contents is not None
    own = _latest(options.save)
    if own is not None and options.load is None:
        raise CheckpointError(
            f"--save {options.save} already holds a run ({own.name}); add --load {options.save} to "
            f"continue it, or give another folder"
        )
    folder = own or _latest(options.load)
    start = Start(
        folder, {}, ours.schedule, ours.contents, ours.config.data.exclude_documents_sha256
    )
    if folder is None:
        if options.finetune or options.exit_on_missing_checkpoint:
            raise CheckpointError(
                f"--load {options.load} holds no checkpoint (no latest_checkpointed_iteration.txt); "
                f"give the folder that a run had as --save"
            )
        if options.load is not None:
            logger.info(f"no checkpoint in {options.load}: starting from random weights")
        return start
    start = replace(start, state=read_state(folder))
    saved = read_fingerprint(folder)
    is_other_run = own is None and options.finetune
    continues = saved.schedule is not None and not is_other_run
    rules = rules_for(ours.config, is_other_run=is_other_run, continues=continues)
    _check_same(start, saved, ours, rules)
    if options.use_checkpoint_opt_param_scheduler:
        if saved.schedule is None:
            raise CheckpointError(
                f"{folder} was converted and has no schedule; leave out --use-checkpoint-opt_param-scheduler"
            )
        start = replace(start, schedule=saved.schedule)
    if not continues:
        return start
    takes_optimizer = own is not None or not options.no_load_optim
    return replace(start, takes_optimizer=takes_optimizer, takes_progress=True)


def _check_same(start: Start, saved: Fingerprint, ours: Fingerprint, rules: Sequence[Rule]) -> None:
    """Raise CheckpointError for the first difference that no flag allows, and log those that one does."""
    for rule in rules:
        difference = rule.difference(saved, ours)
        if difference is None:
            continue
        if not rule.is_allowed(ours.config.checkpoint):
            raise CheckpointError(f"{start.folder} {difference}. {rule.remedy}")
        consequence = rule.consequence.format(samples=start.state.get("consumed_samples"))
        logger.info(f"{start.folder} {difference}; as asked: {consequence}")


def _latest(root: str | None) -> Path | None:
    """Give the checkpoint to continue from under a run's folder; CheckpointError if none of those there can be.

    Without a tracker (deleted, or a crash came before the first one) it is the newest: starting at zero would
    overwrite them.
    """
    if root is None or not Path(root).is_dir():
        return None
    iteration = latest_iteration(Path(root))
    if iteration is not None:
        return checkpoint_folder(Path(root), iteration)
    folders = [checkpoint_folder(Path(root), number) for number in saved_iterations(Path(root))]
    if not folders:
        return None
    names = ", ".join(folder.name for folder in folders)
    complete = [folder for folder in folders if (folder / METADATA_FILE).is_file()]
    if not complete:
        raise CheckpointError(
            f"{root} holds {names} and no {TRACKER}, and none of them is a checkpoint (no {METADATA_FILE}); "
            f"move them away, or give another folder"
        )
    logger.info(
        f"{Path(root) / TRACKER} is missing beside {names}: taking the newest, {complete[-1].name}, as the one to "
        f"start from; write another number into that file to choose, or give another folder to start afresh"
    )
    return complete[-1]
