"""Where a run starts: which checkpoint it continues, and whether the two belong together. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.checkpoint.checksums import read_state
from megatron.checkpoint.choice import Choice, Judge, choose_checkpoint, find_flaw
from megatron.checkpoint.layout import is_checkpoint_folder
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.optimizer.schedule import Schedule
from megatron.options import CheckpointConfig
from megatron.training.contents import Contents
from megatron.training.fingerprint import Fingerprint, Rule, read_fingerprint, rules_for
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
    choice: Choice | None = None  # how folder was chosen

    @property
    def place(self) -> tuple[int, int]:
        """(iteration, consumed samples) of the checkpoint, (-1, -1) without one."""
        if self.folder is None:
            return (-1, -1)
        return (self.state["iteration"], self.state["consumed_samples"])


def plan_start(inputs: Inputs, world_size: int, judge: Judge = find_flaw) -> Start:
    """Resolve the schedule and find the checkpoint to start from, good to judge. CheckpointError; no collective."""
    config = inputs.config
    batch_size = config.global_batch_size(config.parallel.data_parallel_size(world_size))
    schedule = Schedule.create(config.optimizer, config.training, batch_size)
    return find_start(Fingerprint(config, schedule, batch_size, inputs.contents), judge)


def find_start(ours: Fingerprint, judge: Judge = find_flaw) -> Start:
    """Find what --load and --save ask to start from, and check that it belongs to this run. No collective.

    A run that saved something goes on from there, also if it began with the weights of another (--finetune, or a
    --load that is not its --save): the same command continues. A checkpoint that was converted from elsewhere has
    weights only: a run starts from it at iteration 0, with --finetune or without, as from Megatron's `release`.
    Where the latest checkpoint of the run itself is damaged, an older one takes its place; never for another's.
    Raises CheckpointError when the two do not fit.
    """
    options = ours.config.checkpoint
    assert ours.schedule is not None and ours.contents is not None
    own = _choose_own(options, judge)
    if own is not None and options.load is None:
        raise CheckpointError(
            f"--save {options.save} already holds a run ({own.folder.name}); add --load {options.save} to "
            f"continue it, or give another folder"
        )
    choice = own or _choose_other(options.load, judge)
    start = Start(None, {}, ours.schedule, ours.contents, ours.config.data.exclude_documents_sha256)
    if choice is None:
        if options.finetune or options.exit_on_missing_checkpoint:
            raise CheckpointError(
                f"--load {options.load} holds no checkpoint (no latest_checkpointed_iteration.txt); "
                f"give the folder that a run had as --save"
            )
        if options.load is not None:
            logger.info(f"no checkpoint in {options.load}: starting from random weights")
        return start
    folder = choice.folder
    start = replace(start, folder=folder, state=read_state(folder), choice=choice)
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


def _choose_own(options: CheckpointConfig, judge: Judge) -> Choice | None:
    """Choose the checkpoint that the run in --save goes on from, if it has one."""
    if options.save is None:
        return None
    choice = choose_checkpoint(Path(options.save), judge)
    if choice is not None and choice.problem is not None and options.no_checkpoint_fallback:
        raise CheckpointError(
            f"{choice.problem}; {choice.folder} is whole and would be gone on from without "
            f"--no-checkpoint-fallback"
        )
    return choice


def _choose_other(load: str | None, judge: Judge) -> Choice | None:
    """Choose the checkpoint of another run to start from: its latest, or the one that load is the folder of."""
    if load is None:
        return None
    path = Path(load)
    if is_checkpoint_folder(path):
        flaw = judge(path)
        if flaw is not None:
            raise CheckpointError(flaw)
        return Choice(path, read_state(path)["iteration"])
    choice = choose_checkpoint(path, judge)
    if choice is not None and choice.problem is not None:
        raise CheckpointError(
            f"{choice.problem}; {choice.folder} is whole: give that as --load to start from it"
        )
    return choice


def describe_fallback(start: Start) -> list[str]:
    """Say what is unusual about the checkpoint that a run starts from, and what that costs."""
    choice = start.choice
    if choice is None:
        return []
    lines = []
    if choice.problem is not None:
        newest = choice.broken[0].iteration if choice.broken else None
        lost = f", so {newest - choice.iteration} steps are lost and taken again" if newest else ""
        lines = [f"DAMAGED CHECKPOINT: {one.problem}" for one in choice.broken] or [
            f"DAMAGED TRACKER: {choice.tracker_problem}"
        ]
        lines.append(f"going on from iteration {choice.iteration}{lost} ({choice.folder})")
    return lines + ([choice.note] if choice.note else [])
