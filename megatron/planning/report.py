"""Plans and rankings of layouts as tables for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from megatron.model.flops import num_parameters
from megatron.parallel.pipeline import lost_split
from megatron.planning.layouts import Ranking, layout_flags
from megatron.planning.memory import Components, RankPlan
from megatron.planning.plan import GB, Plan

VERSION = 1  # of the JSON
COLUMNS = [item.name for item in dataclasses.fields(Components)]


def to_json(plan: Plan) -> dict[str, Any]:
    """Give the plan as plain JSON values: bytes, seconds and shares, no text to be parsed."""
    step, run = plan.step, plan.run
    return {
        "version": VERSION,
        "world_size": plan.world_size,
        "hardware": plan.hardware.name,
        "parameters": num_parameters(plan.config.model),
        "fits": plan.fits,
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
        "goodput": dataclasses.asdict(plan.goodput),
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
    lines = _columns(rows)
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
    if (loss := lost_split(plan.config)) is not None:
        lines.append(loss)
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
        f"run (modelled)   {run.tokens:,} tokens in {run.steps:,.0f} steps: {_duration(run.days)}, "
        f"{run.device_hours:,.0f} device-hours, {energy}",
        *_goodput_lines(plan),
    ]


def _duration(days: float) -> str:
    """Say how long in the largest unit that it is one of."""
    for unit, in_a_day in (("days", 1), ("hours", 24)):
        if days * in_a_day >= 1:
            return f"{days * in_a_day:.1f} {unit}"
    return f"{days * 24 * 60:.1f} minutes"


def _goodput_lines(plan: Plan) -> list[str]:
    goodput, options = plan.goodput, plan.config.checkpoint
    chosen = "" if options.save_interval else " (the best)"
    more = "" if options.async_save else "; less with --async-save"
    return [
        f"with failures    {goodput.share:.1%} of the time is work that counts: {_duration(goodput.days)}. Some device "
        f"fails every {goodput.mtbf_hours:,.1f} h",
        f"checkpoints      --save-interval {goodput.save_interval:,}{chosen}: {goodput.checkpoint_bytes / GB:,.0f} GB "
        f"every {goodput.interval_seconds / 60:,.1f} min, training stands still for {goodput.stall_seconds:.2f} s{more}",
    ]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay cells out in columns, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def ranking_to_json(ranking: Ranking) -> dict[str, Any]:
    """Give a ranking as plain JSON values: the plan of every layout in it, and the flags that make it."""
    return {
        "version": VERSION,
        "num_layouts": ranking.num_layouts,
        "refused": dict(ranking.refused),
        "layouts": [{"flags": layout_flags(p.config), **to_json(p)} for p in ranking.best],
    }


RANKING_HEADER = (
    *("", "tp", "cp", "pp", "dp", "micro-batch", "schedule", "recompute", "GB"),
    *("idle", "step s", "tokens/s", "a device", "MFU full", "device-hours"),
)


def ranking_to_table(ranking: Ranking) -> str:
    """Lay a ranking out for a terminal, with the flags of the first and why others were refused."""
    rows = [RANKING_HEADER, *(_row(i, plan) for i, plan in enumerate(ranking.best, 1))]
    first = ranking.best[0]
    num_refused = sum(ranking.refused.values())
    return "\n".join(
        [
            f"{ranking.num_layouts:,} layouts over {first.world_size:,} {first.hardware.name}, "
            f"{ranking.num_layouts - num_refused:,} fit; the fastest by the model:",
            *_columns(rows),
            f"the first by flags: {' '.join(layout_flags(first.config))}",
            f"refused: {num_refused:,}",
            *(f"{count:8,}  {reason}" for reason, count in ranking.refused.most_common()),
        ]
    )


def _row(number: int, plan: Plan) -> tuple[str, ...]:
    parallel, model, step = plan.config.parallel, plan.config.model, plan.step
    schedule = "" if parallel.pipeline_model_parallel_size == 1 else "1f1b"
    if parallel.num_virtual_stages_per_pipeline_rank is not None:
        schedule = f"interleaved {parallel.num_virtual_stages_per_pipeline_rank}"
    elif parallel.has_stages_in_v:
        schedule = parallel.pipeline_schedule
    return (
        str(number),
        str(parallel.tensor_model_parallel_size),
        str(parallel.context_parallel_size),
        str(parallel.pipeline_model_parallel_size),
        str(parallel.data_parallel_size(plan.world_size)),
        str(plan.config.training.micro_batch_size),
        schedule,
        "+".join(model.recompute_modules or ()) or model.recompute_granularity or "none",
        f"{plan.fullest.components.total / GB:.1f}",
        f"{step.bubble:.1%}",
        f"{step.seconds:.3f}",
        f"{step.tokens_per_second:,.0f}",
        f"{step.tokens_per_second / plan.world_size:,.0f}",
        f"{step.mfu_full:.1%}",
        f"{plan.run.device_hours:,.0f}",
    )
