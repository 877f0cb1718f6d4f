"""A plan as a table for people and as JSON for programs, and the refusal of what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.model.flops import num_parameters
from megatron.planning.hardware import Hardware
from megatron.planning.memory import Components, RankPlan
from megatron.planning.time import RunCost, StepPlan

VERSION = 1  # of the JSON
GB = 1e9
COLUMNS = [item.name for item in dataclasses.fields(Components)]
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
    run: RunCost

    @property
    def fullest(self) -> RankPlan:
        return max(self.ranks, key=lambda rank: rank.components.total)

    @property
    def room(self) -> float:
        """Bytes of a device that tensors can have."""
        return self.hardware.memory_bytes - self.hardware.reserved_bytes


def check_fits(plan: Plan) -> None:
    """Raise ConfigError if a rank needs more than a device has, naming what is largest and what to change."""
    rank = plan.fullest
    needed = rank.components.total
    if needed <= plan.room:
        return
    largest = rank.components.largest
    raise ConfigError(
        f"pipeline rank {rank.pp_rank} needs {needed / GB:.1f} GB and {plan.hardware.name} has "
        f"{plan.room / GB:.1f} GB for tensors; the largest part is {largest}, "
        f"{getattr(rank.components, largest) / GB:.1f} GB: {WHAT_TO_CHANGE[largest]}"
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """Give the plan as plain JSON values: bytes, seconds and shares, no text to be parsed."""
    step, run = plan.step, plan.run
    return {
        "version": VERSION,
        "world_size": plan.world_size,
        "hardware": plan.hardware.name,
        "parameters": num_parameters(plan.config.model),
        "fits": plan.fullest.components.total <= plan.room,
        "room_bytes": plan.room,
        "ranks": [_rank_json(rank) for rank in plan.ranks],
        "step": {
            "seconds": step.seconds,
            "passes_seconds": step.passes_seconds,
            "optimizer_seconds": step.optimizer_seconds,
            "bubble": step.bubble,
            "tokens": step.tokens,
            "tokens_per_second": step.tokens_per_second,
            "tokens_per_second_per_gpu": step.tokens_per_second / plan.world_size,
            "mfu_full": step.mfu_full,
            "mfu_causal": step.mfu_causal,
            "traffic": [dataclasses.asdict(one) for one in step.traffic],
        },
        "run": dataclasses.asdict(run),
    }


def _rank_json(rank: RankPlan) -> dict[str, Any]:
    return {
        "pp_rank": rank.pp_rank,
        "total_bytes": rank.components.total,
        "fullest_in": rank.fullest,
        "components": dataclasses.asdict(rank.components),
        "stages": [
            {
                "index": plan.stage.index,
                "layers": len(plan.stage.layers),
                "parameters": plan.states.num_parameters,
                "activation_bytes": plan.one_pass.saved_bytes,
                "logits_bytes": plan.one_pass.logits_bytes,
            }
            for plan in rank.stages
        ],
    }


def to_table(plan: Plan) -> str:
    """Lay the plan out for a terminal."""
    return "\n".join([*_memory_lines(plan), "", *_step_lines(plan), "", *_run_lines(plan)])


def _memory_lines(plan: Plan) -> list[str]:
    header = ["rank", "stages", "layers", *COLUMNS, "total GB"]
    rows = [header]
    for rank in plan.ranks:
        amounts = [getattr(rank.components, name) for name in COLUMNS]
        rows.append(
            [
                str(rank.pp_rank),
                ",".join(str(one.stage.index) for one in rank.stages),
                ",".join(str(len(one.stage.layers)) for one in rank.stages),
                *(f"{amount / GB:.2f}" for amount in [*amounts, rank.components.total]),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    share = plan.fullest.components.total / plan.room
    return [
        f"memory of a process of each pipeline rank at its fullest, GB, on {plan.hardware.name}",
        *lines,
        f"the fullest takes {share:.0%} of the {plan.room / GB:.1f} GB that a device has for tensors",
    ]


def _step_lines(plan: Plan) -> list[str]:
    step = plan.step
    per_device = step.tokens_per_second / plan.world_size
    lines = [
        f"step (modelled)  {step.seconds:.3f} s: passes {step.passes_seconds:.3f} s of which "
        f"{step.bubble:.1%} idle, optimizer {step.optimizer_seconds:.3f} s",
        f"speed            {step.tokens_per_second:,.0f} tokens/s, {per_device:,.0f} a device, "
        f"MFU {step.mfu_full:.1%} full, {step.mfu_causal:.1%} causal",
    ]
    for one in step.traffic:
        where = "within a node" if one.is_within_node else "between nodes"
        lines.append(
            f"sent over {one.axis} of {one.size:<4} {one.bytes_sent / GB:.2f} GB a process and step, {where}, "
            f"{one.seconds:.3f} s"
        )
    return lines


def _run_lines(plan: Plan) -> list[str]:
    run = plan.run
    energy = f"power of {plan.hardware.name} not known"
    if run.energy_kwh is not None and run.co2_tonnes is not None:
        energy = f"{run.energy_kwh:,.0f} kWh, {run.co2_tonnes:.2f} t CO2eq"
    return [
        f"run (modelled)   {run.tokens:,} tokens in {run.steps:,.0f} steps: {run.days:.1f} days, "
        f"{run.device_hours:,.0f} device-hours, {energy}",
    ]
