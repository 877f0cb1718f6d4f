"""The bytes that each rank of a run holds at its fullest moment, by component.

What a stage holds comes from `stage`, how many micro-batches of it live at once from `order`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from megatron.config import Config
from megatron.layer_split import assign_stages, resolve_schedule
from megatron.parallel.pipeline import splits_backward
from megatron.planning.hardware import Hardware
from megatron.planning.kernels import choose_planned_kernels, sums_gradients
from megatron.planning.order import Pass, join_halves, most_in_flight
from megatron.planning.stage import (
    FP32_BYTES,
    Counts,
    StagePlan,
    hidden_bytes,
    moment_bytes,
    plan_stage,
    shard_length,
)


@dataclass(frozen=True)
class Components:
    """Bytes of one rank by what they are for."""

    parameters: int = 0  # fp32 master weights, this rank's shard
    gathered: int = 0  # whole weights in the dtype of computation
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0  # of communication, and what a pass works on

    @property
    def total(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self))

    @property
    def largest(self) -> str:
        return max((one.name for one in fields(self)), key=lambda name: int(getattr(self, name)))


@dataclass(frozen=True)
class RankPlan:
    """One pipeline rank: its stages, its passes in order and its bytes when it is fullest."""

    pp_rank: int
    stages: tuple[StagePlan, ...]
    order: tuple[Pass, ...]
    components: Components
    fullest: str  # when


def plan_ranks(
    config: Config, world_size: int, hardware: Hardware, counts: Counts | None = None
) -> list[RankPlan]:
    """Plan every pipeline rank, of its tensor parallel ranks the one that holds most.

    counts: of layouts planned before, to go on with. Raises ConfigError for options that clash; whether it fits is not looked at.
    """
    counts = counts or Counts()
    parallel = config.parallel
    num_ranks = parallel.pipeline_model_parallel_size
    dp_size = parallel.data_parallel_size(world_size)
    block = config.training.micro_batch_size * dp_size
    num_micro_batches = config.global_batch_size(dp_size) // block
    copies, num_shards = parallel.gradient_sizes(world_size)
    kernels = choose_planned_kernels(config, hardware)
    has_sums = sums_gradients(config, hardware, num_micro_batches)
    by_rank = [assign_stages(config.model.num_layers, parallel, rank) for rank in range(num_ranks)]
    num_stages = by_rank[0][0].num_stages
    schedule = resolve_schedule(num_stages, parallel)
    orders = counts.order_passes(schedule, num_ranks, num_stages, num_micro_batches)
    if not splits_backward(config):
        orders = [join_halves(order) for order in orders]
    planned: dict[tuple[int, bool, bool], StagePlan] = {}
    ranks = []
    for pp_rank, stages in enumerate(by_rank):
        plans = []
        for stage in stages:
            kind = (len(stage.layers), stage.is_first, stage.is_last)
            if kind not in planned:
                planned[kind] = max(
                    (
                        plan_stage(
                            config,
                            stage,
                            kernels,
                            tp_rank=tp_rank,
                            num_shards=num_shards,
                            sums_gradients=has_sums,
                            is_alone=copies * num_shards == 1,
                            counts=counts,
                        )
                        for tp_rank in _unlike_tp_ranks(config)
                    ),
                    key=lambda plan: plan.one_pass.saved_bytes,
                )
            plans.append(replace(planned[kind], stage=stage))
        components, fullest = _hold(config, plans, orders[pp_rank], num_micro_batches, world_size)
        ranks.append(RankPlan(pp_rank, tuple(plans), tuple(orders[pp_rank]), components, fullest))
    return ranks


def _unlike_tp_ranks(config: Config) -> range:
    """Give the tensor parallel ranks to look at: the first, unless key/value heads fall unevenly on them."""
    tp_size, groups = config.parallel.tensor_model_parallel_size, config.model.query_groups
    return range(1) if groups == 1 or groups % tp_size == 0 else range(tp_size)


def _hold(
    config: Config,
    plans: list[StagePlan],
    order: list[Pass],
    num_micro_batches: int,
    world_size: int,
) -> tuple[Components, str]:
    """Give the bytes of a rank when it is fullest, and say when: in its passes or when gradients are reduced."""
    copies, num_shards = config.parallel.gradient_sizes(world_size)
    states = [plan.states for plan in plans]
    is_pipeline = config.parallel.pipeline_model_parallel_size > 1
    received = sum(
        (not plan.stage.is_first) + (not plan.stage.is_last) for plan in plans
    )  # torch has a buffer for each micro-batch and direction
    buffers = received * num_micro_batches * hidden_bytes(config) if is_pipeline else 0
    accumulates = num_micro_batches > 1
    is_alone = copies * num_shards == 1
    # who is alone computes in fp32 with the parameters themselves
    has_gathered = not is_alone or config.precision.compute_dtype != "float32"
    base = Components(
        parameters=sum(one.shards for one in states),
        gathered=sum(one.gathered for one in states) if has_gathered else 0,
        gradients=sum(one.whole_gradients for one in states) if accumulates else 0,
        optimizer=sum(one.moments for one in states) - _followed(config, plans, num_shards),
        buffers=buffers,
    )
    in_passes = replace(
        base,
        activations=_in_flight(plans, order, "saved_bytes"),
        logits=_in_flight(plans, order, "logits_bytes"),
        buffers=buffers + max(plan.one_pass.work_bytes for plan in plans),
    )
    if is_alone:
        reducing = _begin_sums(config, plans, base)
    else:
        reducing = _reduce_groups(config, plans, base, num_shards)
    moments = [(in_passes, "passes"), *((one, "gradient reduction") for one in reducing)]
    return max(moments, key=lambda moment: moment[0].total)


def _in_order_of_backward(plans: list[StagePlan]) -> Iterator[tuple[int, int]]:
    """Give the size of each group of parameters, and the bytes of its stage's activations that are left behind it."""
    for plan in reversed(plans):
        sizes, num_layers = plan.states.group_sizes, len(plan.stage.layers)
        for number, size in enumerate([*reversed(sizes[:num_layers]), *sizes[num_layers:]], 1):
            left = max(0, num_layers - number) / max(1, num_layers)
            yield size, int(left * plan.one_pass.saved_bytes)


def _begin_sums(config: Config, plans: list[StagePlan], base: Components) -> Iterator[Components]:
    """Give what is held when each group's gradients are there, in a step's only backward pass.

    Nobody else has any: they become sums as they come about. Where there are several passes, sums are there in all.
    """
    is_pipeline = config.parallel.pipeline_model_parallel_size > 1
    sums = 0
    for size, left in _in_order_of_backward(plans):
        sums += size * FP32_BYTES
        yield replace(
            base,
            gradients=max(base.gradients, sums),
            activations=0 if is_pipeline else left,
        )


def _reduce_groups(
    config: Config, plans: list[StagePlan], base: Components, num_shards: int
) -> Iterator[Components]:
    """Give what is held while each group of parameters is reduced, in the order of the last backward passes.

    A group's weights are let go, its gradients copied into a buffer. Activations of the layers before it are there yet,
    without a pipeline: its passes come first.
    """
    compute_bytes = getattr(torch, config.precision.compute_dtype).itemsize
    accumulates = base.gradients > 0
    is_pipeline = config.parallel.pipeline_model_parallel_size > 1
    gathered, whole, shards, last = base.gathered, base.gradients, 0, 0
    for size, left in _in_order_of_backward(plans):
        gathered -= size * compute_bytes
        own = size * (FP32_BYTES if accumulates else compute_bytes)
        others = whole - own if accumulates else 0
        buffer = size * FP32_BYTES
        yield replace(
            base,
            gathered=max(0, gathered),
            gradients=max(0, others) + shards,
            activations=0 if is_pipeline else left,
            buffers=base.buffers + own + buffer + last,
        )
        whole, shards = others, shards + buffer // num_shards
        last = buffer  # it is filled while the one before is sent


def _followed(config: Config, plans: list[StagePlan], num_shards: int) -> int:
    """Give the moments that the second copy of the tied embedding on a rank with both ends does without."""
    is_tied = not config.model.untie_embeddings_and_output_weights
    if not (is_tied and len(plans) > 1 and plans[0].stage.is_first and plans[-1].stage.is_last):
        return 0
    model = config.model
    rows = model.padded_vocab_size // config.parallel.tensor_model_parallel_size
    held = shard_length(rows, num_shards, 0) * model.hidden_size
    return held * moment_bytes(config.optimizer)


def _in_flight(plans: list[StagePlan], order: list[Pass], what: str) -> int:
    """Give the most of one kind of a pass's bytes that lives at once."""
    sizes = {plan.stage.index: float(getattr(plan.one_pass, what)) for plan in plans}
    return int(most_in_flight(order, sizes))
