"""Where a run starts: which checkpoint it continues, and whether the two belong together. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpoint.checksums import read_config, read_state
from megatron.checkpoint.layout import (
    METADATA_FILE,
    TRACKER,
    checkpoint_folder,
    latest_iteration,
    saved_iterations,
)
from megatron.config import Config, from_json
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.optimizer.schedule import Schedule
from megatron.option_field import flag_of
from megatron.options import DataConfig
from megatron.training.inputs import Inputs

logger = get_logger(__name__)


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


def plan_start(inputs: Inputs, world_size: int) -> Start:
    """Resolve the schedule and find the checkpoint to start from. Raises CheckpointError; no collective."""
    config = inputs.config
    batch_size = config.global_batch_size(config.parallel.data_parallel_size(world_size))
    return find_start(config, Schedule.create(config.optimizer, config.training, batch_size))


def find_start(config: Config, schedule: Schedule) -> Start:
    """Find what --load and --save ask to start from, and check that it belongs to this run. No collective.

    A run that saved something goes on from there, also if it began with the weights of another (--finetune, or a
    --load that is not its --save): the same command continues. A checkpoint that was converted from elsewhere has
    weights only: a run starts from it at iteration 0, with --finetune or without, as from Megatron's `release`.
    Raises CheckpointError when the two do not fit.
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
    is_other_run = own is None and options.finetune
    _check_same(config, saved, "model", _model_fields(config, is_other_run), folder)
    is_converted = "schedule" not in state
    if is_converted and options.use_checkpoint_opt_param_scheduler:
        raise CheckpointError(
            f"{folder} was converted and has no schedule; leave out --use-checkpoint-opt_param-scheduler"
        )
    if is_converted or is_other_run:
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
        _check_schedule(config, saved, schedule, stored, folder)
    takes_optimizer = own is not None or not options.no_load_optim
    return Start(folder, state, schedule, takes_optimizer, takes_progress=True, opt_outs=opt_outs)


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


def _model_fields(config: Config, is_other_run: bool) -> tuple[str, ...]:
    """Name the fields that decide the shape of the weights; how they are computed may change.

    Another run of the weights may see further: how far decides the shape of learned positions only.
    """
    free = {
        "hidden_dropout",
        "attention_dropout",
        "init_method_std",
        "recompute_granularity",
        "recompute_modules",
        "recompute_method",
        "recompute_num_layers",
        "attention_backend",
        "kernels",
        "logits_chunk_size",
        "make_vocab_size_divisible_by",
        "padded_vocab_size",
        "group_query_attention",
        # said by query_groups, ffn_size and head_dim, which compare what they come to
        "attention_head_type",
        "num_query_groups",
        "ffn_hidden_size",
        "kv_channels",
    }
    if is_other_run:
        free |= {"window_size"}
        if config.model.has_rotary_positions:
            free |= {"rotary_base", "max_position_embeddings"}
    names = (item.name for item in dataclasses.fields(config.model))
    return (*(name for name in names if name not in free), "query_groups", "ffn_size", "head_dim")


def _check_same(
    config: Config, saved: Config, section: str, names: tuple[str, ...], folder: Path
) -> None:
    """Raise CheckpointError naming the first field in which the two configurations differ."""
    ours, theirs = getattr(config, section), getattr(saved, section)
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            way_out = "another --save for a new run"
            if section == "model" and name not in _model_fields(config, is_other_run=True):
                way_out = "start another run from these weights with --finetune"
            raise CheckpointError(
                f"{folder} has {name} = {getattr(theirs, name)}, this run {getattr(ours, name)}; "
                f"give the old value, or {way_out}"
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


def _check_schedule(
    config: Config, saved: Config, ours: Schedule, stored: Schedule, folder: Path
) -> None:
    """Raise CheckpointError if the schedules differ, naming the options that make them differ."""
    parts = [
        f"{item.name} was {getattr(stored, item.name)} and is {getattr(ours, item.name)}"
        for item in dataclasses.fields(Schedule)
        if getattr(ours, item.name) != getattr(stored, item.name)
    ]
    if not parts:
        return
    old, new = _schedule_options(saved), _schedule_options(config)
    causes = [
        f"{flag} was {_shown(old[flag])} and is {_shown(new[flag])}"
        for flag in new
        if new[flag] != old[flag]
    ] or ["the default of --global-batch-size follows the number of processes"]
    raise CheckpointError(
        f"{folder} was trained on another schedule: {', '.join(causes)} ({', '.join(parts)}). Give the old value, "
        f"another --save (the example's RUN_DIR) for a new run, --override-opt_param-scheduler to go on with the "
        f"new schedule, or --use-checkpoint-opt_param-scheduler with the old"
    )


def _shown(value: object) -> object:
    return "not set" if value is None else value


def _schedule_options(config: Config) -> dict[str, object]:
    """Give what decides the schedule: {flag: value}."""
    values: dict[str, object] = {
        flag_of(item): getattr(section, item.name)
        for section in (config.training, config.optimizer)
        for item in dataclasses.fields(section)
        if item.name.startswith(("train_", "lr", "min_lr")) or "weight_decay" in item.name
    }
    return values | {"--global-batch-size": config.training.global_batch_size}
