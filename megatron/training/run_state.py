"""What a run is besides its options: weights, moments, and how far it has come. Saved and found again.

Random numbers need no state: every draw is a function of the seed and of what it is for.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from megatron.checkpoint.load import load_checkpoint
from megatron.logging import get_logger
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.optimizer.schedule import Schedule
from megatron.training.contents import Contents
from megatron.training.fingerprint import FINGERPRINT
from megatron.training.skipped import SkippedSamples, skipped_in
from megatron.training.spike import SpikeHistory
from megatron.training.start import Start

logger = get_logger(__name__)


@dataclass
class Interval:
    """Sums over the steps since the last log line. Saved with a checkpoint, so that a resume logs the same mean."""

    num_steps: int = 0
    num_losses: int = 0  # steps whose loss was finite
    loss_sum: float = 0.0
    num_skipped: int = 0
    num_loss_tokens: int = 0

    def add(self, loss: float, is_skipped: bool, num_loss_tokens: int = 0) -> None:
        """Account for one step."""
        self.num_steps += 1
        self.num_loss_tokens += num_loss_tokens
        self.num_skipped += is_skipped
        if math.isfinite(loss):
            self.num_losses += 1
            self.loss_sum += loss

    @property
    def mean_loss(self) -> float:
        return self.loss_sum / self.num_losses if self.num_losses else math.nan


@dataclass
class Progress:
    """How far a run has come."""

    iteration: int = 0
    consumed_samples: int = 0
    interval: Interval = field(default_factory=Interval)  # of the steps that were read (Account)
    spikes: SpikeHistory = field(default_factory=SpikeHistory)  # the same
    skipped: tuple[SkippedSamples, ...] = ()  # in order; consumed_samples counts them, too
    num_rollbacks: int = 0

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

    def all(self) -> dict[str, Tensor]:
        """Weights and moments."""
        return self.weights() | self.optimizer.tensors()


def state_of(progress: Progress, tensors: RunTensors, contents: Contents) -> dict[str, Any]:
    """Give all of a run that is no tensor, as JSON values. Synchronises the device."""
    return {
        "iteration": progress.iteration,
        "consumed_samples": progress.consumed_samples,
        "world_size": dist.get_world_size(),  # for people, and to trace samples to ranks
        "optimizer_steps": tensors.optimizer.num_steps,
        "loss_scale": tensors.loss_scale.state(),
        "schedule": dataclasses.asdict(tensors.schedule),
        "interval": dataclasses.asdict(progress.interval),
        "spikes": dataclasses.asdict(progress.spikes),
        "skipped": [dataclasses.asdict(one) for one in progress.skipped],
        "rollbacks": progress.num_rollbacks,
        FINGERPRINT: contents.to_json(),
    }


def restore(start: Start, tensors: RunTensors) -> Progress:
    """Load the checkpoint, which is verified, into the run's tensors in place. Collective over the world."""
    if start.folder is None:
        return Progress()
    wanted = tensors.weights()
    if start.takes_optimizer:
        wanted |= tensors.optimizer.tensors()
    load_checkpoint(start.folder, wanted, is_verified=True)
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
        SpikeHistory(**start.state.get("spikes", {})),  # older checkpoints have none
        skipped_in(start.state),
        start.state.get("rollbacks", 0),
    )
