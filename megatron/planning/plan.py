"""All that is known of a run before it starts, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.planning.goodput import Failures, Goodput, Steps, plan_goodput
from megatron.planning.hardware import Hardware
from megatron.planning.memory import RankPlan, plan_ranks
from megatron.planning.stage import Counts
from megatron.planning.time import RunCost, StepPlan, plan_run, plan_step

GB = 1e9
WHAT_TO_CHANGE = {
    "parameters": "give --use-distributed-optimizer, or raise --tensor-model-parallel-size or "
    "--pipeline-model-parallel-size",
    "gathered": "raise --tensor-model-parallel-size or --pipeline-model-parallel-size",
    "gradients": "raise --tensor-model-parallel-size or --pipeline-model-parallel-size",
    "optimizer": "give --use-distributed-optimizer, or raise --tensor-model-parallel-size or "
    "--pipeline-model-parallel-size",
    "activations": "lower --micro-batch-size, give --sequence-parallel or --recompute-granularity full, or raise "
    "--tensor-model-parallel-size",
    "logits": "lower --micro-batch-size or raise --tensor-model-parallel-size",
    "buffers": "lower --micro-batch-size or give --sequence-parallel",
}


@dataclass(frozen=True)
class Plan:
    """All that is known of a run before it starts."""

    config: Config
    world_size: int
    hardware: Hardware
    ranks: Sequence[RankPlan]
    step: StepPlan
    run: RunCost  # without failures and saves
    goodput: Goodput

    @property
    def fullest(self) -> RankPlan:
        return max(self.ranks, key=lambda rank: rank.components.total)

    @property
    def room(self) -> float:
        """Bytes of a device that tensors can have."""
        return self.hardware.memory_bytes - self.hardware.reserved_bytes

    @property
    def fits(self) -> bool:
        return self.fullest.components.total <= self.room


@dataclass(frozen=True)
class Question:
    """What a plan is asked for besides the options of the run."""

    world_size: int
    hardware: Hardware
    document_length: int | None = (
        None  # mean of those that do not see each other; None: whole samples
    )
    pue: float = 1.0
    carbon_intensity: float = 0.0
    failures: Failures = field(default_factory=Failures)


def make_plan(config: Config, question: Question, counts: Counts | None = None) -> Plan:
    """Plan a run. counts: of plans made before. Raises ConfigError for options that clash, not for memory."""
    world_size, hardware = question.world_size, question.hardware
    ranks = plan_ranks(config, world_size, hardware, counts)
    step = plan_step(config, world_size, hardware, ranks, question.document_length)
    run = plan_run(
        config, step, hardware, pue=question.pue, carbon_intensity=question.carbon_intensity
    )
    goodput = plan_goodput(config, Steps(world_size, step.seconds, run.days), question.failures)
    return Plan(config, world_size, hardware, ranks, step, run, goodput)


def check_fits(plan: Plan) -> None:
    """Raise ConfigError if a rank needs more than a device has, naming what is largest and what to change."""
    rank = plan.fullest
    if plan.fits:
        return
    needed = rank.components.total
    largest = rank.components.largest
    raise ConfigError(
        f"pipeline rank {rank.pp_rank} needs {needed / GB:.1f} GB and {plan.hardware.name} has "
        f"{plan.room / GB:.1f} GB for tensors; the largest part is {largest}, "
        f"{getattr(rank.components, largest) / GB:.1f} GB: {WHAT_TO_CHANGE[largest]}"
    )
