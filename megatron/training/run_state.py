"""What a run is besides its options: weights, moments, and how far it has come. Saved and found again.

Random numbers need no state: every draw is a function of the seed and of what it is for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.options import CheckpointConfig, OptimizerConfig
from megatron.training.metrics import Interval

logger = get_logger(__name__)

SCHEDULE_FIELDS = tuple(
    name
    for name in (item.name for item in dataclasses.fields(OptimizerConfig))
    if name == "lr" or name == "min_lr" or name.startswith("lr_") or "weight_decay" in name
)


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
            "optimizer_steps": self._tensors.optimizer.num_steps,
            "loss_scale": self._tensors.loss_scale.state(),
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


def resume_config(config: Config) -> tuple[Config, Path | None]:
    """Find the checkpoint of --load and check that it belongs to this run. No collective, no torch tensors.

    Returns the config, its schedule taken from the checkpoint with --use-checkpoint-opt_param-scheduler, and the
    checkpoint's folder, None for a fresh start. Raises CheckpointError when the two do not fit.
    """
    options = config.checkpoint
    if options.load is None:
        return config, None
    iteration = latest_iteration(Path(options.load))
    if iteration is None:
        if options.finetune or options.exit_on_missing_checkpoint:
            raise CheckpointError(
                f"--load {options.load} holds no checkpoint (no latest_checkpointed_iteration.txt); "
                f"give the folder that a run had as --save"
            )
        logger.info(f"no checkpoint in {options.load}: starting from random weights")
        return config, None
    path = checkpoint_folder(Path(options.load), iteration)
    saved = from_json(read_config(path))
    _check_same(config, saved, "model", _model_fields(config), path)
    if options.finetune:
        return config, path
    if not options.no_load_rng and saved.training.seed != config.training.seed:
        raise CheckpointError(
            f"{path} was trained with --seed {saved.training.seed}, this run has "
            f"{config.training.seed}: the order of its samples would change. Give the old seed, or "
            f"--no-load-rng to go on with the new one"
        )
    if options.use_checkpoint_opt_param_scheduler:
        old = {name: getattr(saved.optimizer, name) for name in SCHEDULE_FIELDS}
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **old))
    elif not options.override_opt_param_scheduler:
        _check_same(config, saved, "optimizer", SCHEDULE_FIELDS, path)
    return config, path


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
        "attention_head_type",  # query_groups says it
    }
    names = (item.name for item in dataclasses.fields(config.model))
    return (*(name for name in names if name not in free), "query_groups", "ffn_size", "head_dim")


def _check_same(
    config: Config, saved: Config, section: str, names: tuple[str, ...], path: Path
) -> None:
    """Raise CheckpointError naming the first field in which the two configurations differ."""
    ours, theirs = getattr(config, section), getattr(saved, section)
    derived = {"num_query_groups", "ffn_hidden_size", "kv_channels"}
    for name in names:
        if name in derived or getattr(ours, name) == getattr(theirs, name):
            continue
        hint = (
            "give the old value, --override-opt_param-scheduler or "
            "--use-checkpoint-opt_param-scheduler"
            if section == "optimizer"
            else "give the old value, or another --save and --load for a new run"
        )
        raise CheckpointError(
            f"{path} has {name} = {getattr(theirs, name)}, this run {getattr(ours, name)}; {hint}"
        )


def restore(path: Path | None, tensors: RunTensors, options: CheckpointConfig) -> Progress:
    """Load a checkpoint into the run's tensors in place. Collective over the world."""
    if path is None:
        return Progress()
    wanted = tensors.weights()
    state = read_state(path)
    with_optimizer = not (options.finetune or options.no_load_optim)
    if with_optimizer:
        wanted |= tensors.optimizer.tensors()
    load_checkpoint(path, wanted)
    if with_optimizer:
        tensors.optimizer.num_steps = state["optimizer_steps"]
        tensors.loss_scale.load_state(state["loss_scale"])
    if options.finetune:
        logger.info(f"weights from {path}; iteration, samples and optimizer start afresh")
        return Progress()
    logger.info(f"continuing {path} at {state['consumed_samples']} samples")
    return Progress(state["iteration"], state["consumed_samples"], Interval(**state["interval"]))
