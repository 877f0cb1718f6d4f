"""What a run is besides its options: weights, moments, and how far it has come. Saved and found again.

Random numbers need no state: every draw is a function of the seed and of what it is for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from megatron.checkpoint.load import load_checkpoint
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.optimizer.schedule import Schedule
from megatron.training.fingerprint import BY_CHECKSUM, FINGERPRINT, Contents, list_files
from megatron.training.metrics import Interval
from megatron.training.skipped import SkippedSamples, skipped_in
from megatron.training.spike import SpikeHistory
from megatron.training.start import Start

logger = get_logger(__name__)

NUM_SHOWN = 8  # hosts that are named


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
    """Load the checkpoint, which is verified, into the run's tensors in place. Collective over the world.

    Raises DataError on every process if their files hold different things.
    """
    _check_same_files(start)
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


def _check_same_files(start: Start) -> None:
    """Raise DataError, on every process, unless all read the same. Collective over the world."""
    ours = list_files(start.contents, start.opt_outs)
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, hashlib.sha256(repr(ours).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    found: list[tuple[str, dict[str, str]]] = [("", {})] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), ours))
    for name in dict.fromkeys(name for _, files in found for name in files):
        hosts = defaultdict[str, set[str]](set)
        for host, files in found:
            if name in files or not name.endswith(BY_CHECKSUM):
                hosts[files.get(name, "missing")].add(host)
        if len(hosts) == 1:
            continue
        # Those that differ from most come first.
        shown = sorted(hosts.items(), key=lambda item: (len(item[1]), item[0]))
        parts = [f"{content} on {_some(sorted(names))}" for content, names in shown]
        raise DataError(
            f"the processes read different files: {name} is {' and '.join(parts)}; every node needs the same files"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
