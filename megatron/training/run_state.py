"""What a run is besides its options: weights, moments, and how far it has come. Saved and found again.

Random numbers need no state: every draw is a function of the seed and of what it is for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from megatron.checkpoint.layout import (
    checkpoint_folder,
    latest_iteration,
    read_config,
    read_state,
)
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.save import save_checkpoint
from megatron.config import Config, from_json, to_json
from megatron.errors import CheckpointError, DataError
from megatron.logging import get_logger
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.optimizer.schedule import Schedule
from megatron.options import DataConfig
from megatron.training.metrics import Interval

logger = get_logger(__name__)


@dataclass
class Progress:
    """How far a run has come."""

    iteration: int = 0
    consumed_samples: int = 0
    interval: Interval = field(default_factory=Interval)

    def advance(self, num_samples: int) -> None:
        """Account for one step."""
        self.iteration += 1
        self.consumed_samples += num_samples


@dataclass(frozen=True)
class RunTensors:
    """The tensors of a run on this process, by the logical names that every layout shares."""

    parameters: dict[str, nn.Parameter]
    optimizer: AdamW
    loss_scale: LossScale
    schedule: Schedule

    def weights(self) -> dict[str, Tensor]:
        return {f"model.{name}": parameter for name, parameter in self.parameters.items()}


class RunSaver:
    """Writes checkpoints of one run under --save."""

    def __init__(self, config: Config, tensors: RunTensors, *, last_saved: int) -> None:
        self._config = config
        self._tensors = tensors
        self._last_saved = last_saved

    def save_if_due(self, progress: Progress, *, is_last: bool) -> None:
        """Save at a multiple of --save-interval and at the end. Collective over the world when it saves."""
        checkpoint = self._config.checkpoint
        is_due = (
            checkpoint.save_interval is not None
            and progress.iteration % checkpoint.save_interval == 0
        )
        if checkpoint.save is None or not (is_due or is_last):
            return
        if progress.iteration == self._last_saved:
            return
        tensors = self._tensors.weights()
        if not checkpoint.no_save_optim:
            tensors |= self._tensors.optimizer.tensors()
        state: dict[str, Any] = {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            "world_size": dist.get_world_size(),  # for people, and to trace samples to ranks
            "optimizer_steps": self._tensors.optimizer.num_steps,
            "loss_scale": self._tensors.loss_scale.state(),
            "schedule": dataclasses.asdict(self._tensors.schedule),
            "interval": dataclasses.asdict(progress.interval),
        }
        path = save_checkpoint(
            Path(checkpoint.save),
            progress.iteration,
            tensors,
            state=state,
            config=to_json(self._config),
        )
        self._last_saved = progress.iteration
        logger.info(f"saved {path}")


@dataclass(frozen=True)
class Start:
    """Where a run starts: at zero, at its own checkpoint, or (fine-tuning) with the weights of another."""

    folder: Path | None  # the checkpoint to read
    state: dict[str, Any]  # its state.json
    schedule: Schedule
    takes_optimizer: bool
    takes_progress: bool
    opt_outs: tuple[str, ...] = ()  # SHA-256 of the lists that this process read

    @property
    def place(self) -> tuple[int, int]:
        """(iteration, consumed samples) of the checkpoint, (-1, -1) without one."""
        if self.folder is None:
            return (-1, -1)
        return (self.state["iteration"], self.state["consumed_samples"])


def find_start(config: Config, schedule: Schedule) -> Start:
    """Find what --load and --save ask to start from, and check that it belongs to this run. No collective.

    A run that saved something goes on from there, also if it began with the weights of another (--finetune, or a
    --load that is not its --save): the same command continues. Raises CheckpointError when the two do not fit.
    """
    options, opt_outs = config.checkpoint, config.data.exclude_documents_sha256
    own = _latest(options.save)
    if own is not None and options.load is None:
        raise CheckpointError(
            f"--save {options.save} already holds a run ({own.name}); add --load {options.save} to "
            f"continue it, or give another folder"
        )
    folder = own or _latest(options.load)
    if folder is None:
        if options.finetune or options.exit_on_missing_checkpoint:
            raise CheckpointError(
                f"--load {options.load} holds no checkpoint (no latest_checkpointed_iteration.txt); "
                f"give the folder that a run had as --save"
            )
        if options.load is not None:
            logger.info(f"no checkpoint in {options.load}: starting from random weights")
        return Start(
            None, {}, schedule, takes_optimizer=False, takes_progress=False, opt_outs=opt_outs
        )
    saved, state = from_json(read_config(folder)), read_state(folder)
    _check_same(config, saved, "model", _model_fields(config), folder)
    if own is None and options.finetune:
        return Start(
            folder, state, schedule, takes_optimizer=False, takes_progress=False, opt_outs=opt_outs
        )
    _check_same(config, saved, "data", SAMPLE_FIELDS, folder)
    _check_exclusions(config, saved, folder, state["consumed_samples"])
    if not options.no_load_rng and saved.training.seed != config.training.seed:
        raise CheckpointError(
            f"{folder} was trained with --seed {saved.training.seed}, this run has "
            f"{config.training.seed}: the order of its samples would change. Give the old seed, or "
            f"--no-load-rng to go on with the new one"
        )
    stored = Schedule(**state["schedule"])
    if options.use_checkpoint_opt_param_scheduler:
        schedule = stored
    elif not options.override_opt_param_scheduler:
        _check_schedule(schedule, stored, folder)
    takes_optimizer = own is not None or not options.no_load_optim
    return Start(folder, state, schedule, takes_optimizer, takes_progress=True, opt_outs=opt_outs)


def _latest(root: str | None) -> Path | None:
    """Give the newest checkpoint under a run's folder."""
    iteration = None if root is None else latest_iteration(Path(root))
    return None if root is None or iteration is None else checkpoint_folder(Path(root), iteration)


# What decides which tokens a sample number stands for and what is asked of them, besides the data itself.
SAMPLE_FIELDS = (
    "seq_length",
    "fim_rate",
    "fim_spm_rate",
    "fim_split_sample",
    "fragment_fim_rate",
    "eod_mask_loss",
    "reset_position_ids",
    "reset_attention_mask",
)


def _model_fields(config: Config) -> tuple[str, ...]:
    """Name the fields that decide the shape of the weights; how they are computed may change."""
    free = {
        "hidden_dropout",
        "attention_dropout",
        "init_method_std",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "attention_backend",
        "make_vocab_size_divisible_by",
        "padded_vocab_size",
        "group_query_attention",
        # said by query_groups, ffn_size and head_dim, which compare what they come to
        "attention_head_type",
        "num_query_groups",
        "ffn_hidden_size",
        "kv_channels",
    }
    names = (item.name for item in dataclasses.fields(config.model))
    return (*(name for name in names if name not in free), "query_groups", "ffn_size", "head_dim")


def _check_same(
    config: Config, saved: Config, section: str, names: tuple[str, ...], folder: Path
) -> None:
    """Raise CheckpointError naming the first field in which the two configurations differ."""
    ours, theirs = getattr(config, section), getattr(saved, section)
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            raise CheckpointError(
                f"{folder} has {name} = {getattr(theirs, name)}, this run {getattr(ours, name)}; "
                f"give the old value, or another --save for a new run"
            )


def _check_exclusions(config: Config, saved: Config, folder: Path, consumed_samples: int) -> None:
    """Raise CheckpointError if the opt-out lists hold something else than they did, unless that is meant."""
    ours, theirs = config.data, saved.data
    if sorted(ours.exclude_documents_sha256) == sorted(theirs.exclude_documents_sha256):
        return
    change = f"{folder} was trained with {_lists(theirs)}, this run has {_lists(ours)}"
    if not config.checkpoint.override_exclude_documents:
        raise CheckpointError(
            f"{change}: the order of its samples would change. Give the old lists, or "
            f"--override-exclude-documents to go on with the new ones"
        )
    logger.info(f"{change}; samples from {consumed_samples} on are drawn from what is left")


def _lists(data: DataConfig) -> str:
    """Name opt-out lists by path and by the start of their hash."""
    named = zip(data.exclude_documents, data.exclude_documents_sha256, strict=True)
    return " ".join(
        ("--exclude-documents", *(f"{path} (sha256 {digest[:12]}…)" for path, digest in named))
        if data.exclude_documents
        else ("no --exclude-documents",)
    )


def _check_schedule(ours: Schedule, stored: Schedule, folder: Path) -> None:
    """Raise CheckpointError naming the first part of the schedule that differs."""
    for item in dataclasses.fields(Schedule):
        if getattr(ours, item.name) != getattr(stored, item.name):
            raise CheckpointError(
                f"{folder} has {item.name} = {getattr(stored, item.name)} in its schedule, this run "
                f"{getattr(ours, item.name)}; give the old options, --override-opt_param-scheduler "
                f"for the new schedule or --use-checkpoint-opt_param-scheduler for the old"
            )


def restore(start: Start, tensors: RunTensors) -> Progress:
    """Load the checkpoint into the run's tensors in place. Collective over the world.

    Raises CheckpointError on every process if they found different checkpoints, as with a folder that is not shared,
    and DataError if they read different opt-out lists.
    """
    found: list[tuple[tuple[int, int], tuple[str, ...]]] = [((0, 0), ())] * dist.get_world_size()
    dist.all_gather_object(found, (start.place, start.opt_outs))
    places, opt_outs = {place for place, _ in found}, {lists for _, lists in found}
    if len(places) > 1:
        raise CheckpointError(
            f"the processes found checkpoints of different iterations ({sorted(places)}, -1 for "
            f"none): --save and --load have to be on storage that all nodes share"
        )
    if len(opt_outs) > 1:
        raise DataError(
            "the processes read --exclude-documents of different content; every node needs the same files"
        )
    if start.folder is None:
        return Progress()
    wanted = tensors.weights()
    if start.takes_optimizer:
        wanted |= tensors.optimizer.tensors()
    load_checkpoint(start.folder, wanted)
    if start.takes_optimizer:
        tensors.optimizer.num_steps = start.state["optimizer_steps"]
        tensors.loss_scale.load_state(start.state["loss_scale"])
    if not start.takes_progress:
        logger.info(f"weights from {start.folder}; iteration, samples and optimizer start afresh")
        return Progress()
    logger.info(f"continuing {start.folder} at {start.state['consumed_samples']} samples")
    return Progress(
        start.state["iteration"],
        start.state["consumed_samples"],
        Interval(**start.state["interval"]),
    )
