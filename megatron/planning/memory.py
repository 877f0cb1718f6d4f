"""The bytes that each rank of a run holds at its fullest moment, by component.

Parameters, gradients and optimizer state follow from the shapes of the model as it is really built, and from how
`fully_shard` cuts and gathers them. Activations come from `passes`, how many of them live at once from `order`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from megatron.config import Config
from megatron.kernels.registry import Kernels
from megatron.layer_split import StageLayers, assign_stages, resolve_schedule
from megatron.model.gpt import GPTModel
from megatron.options import OptimizerConfig
from megatron.planning.hardware import Hardware
from megatron.planning.kernels import choose_planned_kernels
from megatron.planning.order import Pass, most_in_flight, order_passes
from megatron.planning.passes import StagePass, Work, count_pass, local_parts
from megatron.planning.world import META, PlannedContext, build_stage, compute_in

FP32_BYTES = 4
NUM_MOMENTS = 2


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
class States:
    """Bytes of a stage's parameters and of what belongs to them."""

    num_parameters: int  # of this tensor parallel rank, before data parallelism cuts them
    shards: int
    gathered: int
    whole_gradients: int  # fp32 sums over micro-batches
    gradient_shards: int
    moments: int
    largest_group: int  # parameters that are gathered and reduced together, at most


@dataclass(frozen=True)
class StagePlan:
    """One stage as one tensor parallel rank holds it."""

    stage: StageLayers
    states: States
    one_pass: StagePass
    moved: dict[str, int]  # bytes sent over tp in both passes of a micro-batch, by collective
    moved_over_cp: int  # the same over cp, all collectives


@dataclass(frozen=True)
class RankPlan:
    """One pipeline rank: its stages, its passes in order and its bytes when it is fullest."""

    pp_rank: int
    stages: tuple[StagePlan, ...]
    order: tuple[Pass, ...]
    components: Components
    fullest: str  # when


def shard_length(length: int, num_shards: int, rank: int) -> int:
    """Give how many of a first dim's rows torch.chunk leaves to a rank."""
    size = -(-length // num_shards)
    return max(0, min(size, length - rank * size))


def moment_bytes(config: OptimizerConfig) -> int:
    """Give the bytes of both moments of one weight."""
    return sum(getattr(torch, dtype).itemsize for dtype in config.moment_dtypes)


def count_states(
    groups: Iterable[list[Tensor]],
    num_shards: int,
    compute_bytes: int,
    *,
    moment_bytes: int,
    shard_rank: int = 0,
) -> States:
    """Count what `fully_shard` and the optimizer allocate for groups of parameters, local parts over tp.

    A shard is padded to that of rank 0; moments are not. compute_bytes, moment_bytes: of one weight.
    """
    whole = padded = held = largest = 0
    for group in groups:
        size = 0
        for part in group:
            row = math.prod(part.shape[1:])
            size += -(-part.size(0) // num_shards) * num_shards * row
            held += shard_length(part.size(0), num_shards, shard_rank) * row
            whole += part.numel()
        padded += size
        largest = max(largest, size)
    return States(
        num_parameters=whole,
        shards=padded // num_shards * FP32_BYTES,
        gathered=padded * compute_bytes,
        whole_gradients=whole * FP32_BYTES,
        gradient_shards=padded // num_shards * FP32_BYTES,
        moments=held * moment_bytes,
        largest_group=largest,
    )


def parameter_groups(model: GPTModel) -> list[list[Tensor]]:
    """Give the groups that `shard_data_parallel` makes: each layer, and what is outside of layers."""
    layers = list(model.layers.values())
    inside = {id(p) for layer in layers for p in layer.parameters()}
    rest = nn.ParameterList(p for p in model.parameters() if id(p) not in inside)
    return [part for part in map(local_parts, [*layers, rest]) if part]


def plan_stage(
    config: Config, stage: StageLayers, kernels: Kernels, *, tp_rank: int, num_shards: int
) -> StagePlan:
    """Build a stage for one tensor parallel rank, and run a micro-batch through it or through part of it."""
    dtype = getattr(torch, config.precision.compute_dtype)
    context = PlannedContext.at(tp_rank, config.parallel.tensor_model_parallel_size)
    model = build_stage(config, context, stage, kernels)
    states = count_states(
        parameter_groups(model),
        num_shards,
        dtype.itemsize,
        moment_bytes=moment_bytes(config.optimizer),
    )
    number = len(stage.layers)
    if config.model.recompute_granularity == "full" or number <= 2:
        return StagePlan(stage, states, *_run(config, stage, kernels, tp_rank))
    # layers are alike: two and one of them tell what the others do
    first = stage.layers.start
    one, moved_by_one, over_cp_by_one = _run(
        config, replace(stage, layers=range(first, first + 1)), kernels, tp_rank
    )
    two, moved_by_two, over_cp_by_two = _run(
        config, replace(stage, layers=range(first, first + 2)), kernels, tp_rank
    )
    more = number - 2
    return StagePlan(
        stage,
        states,
        StagePass(
            two.saved_bytes + more * (two.saved_bytes - one.saved_bytes),
            two.logits_bytes,
            two.work_bytes,
            _extend(one.forward, two.forward, more),
            _extend(one.backward, two.backward, more),
        ),
        {name: n + more * (n - moved_by_one.get(name, 0)) for name, n in moved_by_two.items()},
        over_cp_by_two + more * (over_cp_by_two - over_cp_by_one),
    )


def _extend(one: Work, two: Work, more: int) -> Work:
    """Add the work of more layers to that of two."""
    return Work(
        **{
            item.name: (value := getattr(two, item.name)) + more * (value - getattr(one, item.name))
            for item in fields(Work)
        }
    )


def _run(
    config: Config, stage: StageLayers, kernels: Kernels, tp_rank: int
) -> tuple[StagePass, dict[str, int], int]:
    """Run a micro-batch through a stage on the meta device."""
    tp_size = config.parallel.tensor_model_parallel_size
    dtype = getattr(torch, config.precision.compute_dtype)
    context = PlannedContext.at(tp_rank, tp_size, config.parallel.context_parallel_size)
    model = build_stage(config, context, stage, kernels)
    compute_in(model, dtype)
    b, s = config.training.micro_batch_size, local_length(config)
    ids = torch.empty(b, s, dtype=torch.int64, device=META)
    x = ids
    if not stage.is_first:
        x = torch.empty(hidden_shape(config), dtype=dtype, device=META, requires_grad=True)
    logits = (s, b, config.model.padded_vocab_size // tp_size) if stage.is_last else None
    inputs = {
        "x": x,
        "sample_ids": torch.zeros(b, dtype=torch.int64),
        "labels": ids if stage.is_last else None,
    }
    one_pass = count_pass(model, inputs, logits)
    return one_pass, dict(context.moved), sum(context.moved_over_cp.values())


def local_length(config: Config) -> int:
    """Give the positions of a sample that a process holds, before sequence parallelism divides them."""
    return config.data.seq_length // config.parallel.context_parallel_size


def hidden_shape(config: Config) -> tuple[int, int, int]:
    """Give the shape of what travels between stages: [s, b, h], or [s/t, b, h] with sequence parallel."""
    s, tp_size = local_length(config), config.parallel.tensor_model_parallel_size
    length = s // tp_size if config.parallel.sequence_parallel else s
    return (length, config.training.micro_batch_size, config.model.hidden_size)


def hidden_bytes(config: Config) -> int:
    """Give the size of what travels between stages for a micro-batch."""
    dtype = getattr(torch, config.precision.compute_dtype)
    return int(math.prod(hidden_shape(config)) * dtype.itemsize)


def plan_ranks(config: Config, world_size: int, hardware: Hardware) -> list[RankPlan]:
    """Plan every pipeline rank, of its tensor parallel ranks the one that holds most.

    Raises ConfigError for options that clash; whether it fits is not looked at.
    """
    parallel = config.parallel
    num_ranks = parallel.pipeline_model_parallel_size
    dp_size = parallel.data_parallel_size(world_size)
    block = config.training.micro_batch_size * dp_size
    num_micro_batches = config.global_batch_size(dp_size) // block
    _, num_shards = parallel.gradient_sizes(world_size)
    kernels = choose_planned_kernels(config, hardware)
    by_rank = [assign_stages(config.model.num_layers, parallel, rank) for rank in range(num_ranks)]
    num_stages = by_rank[0][0].num_stages
    schedule = resolve_schedule(num_stages, parallel)
    orders = order_passes(schedule, num_ranks, num_stages, num_micro_batches)
    planned: dict[tuple[int, bool, bool], StagePlan] = {}
    ranks = []
    for pp_rank, stages in enumerate(by_rank):
        plans = []
        for stage in stages:
            kind = (len(stage.layers), stage.is_first, stage.is_last)
            if kind not in planned:
                planned[kind] = max(
                    (
                        plan_stage(config, stage, kernels, tp_rank=r, num_shards=num_shards)
                        for r in _unlike_tp_ranks(config)
                    ),
                    key=lambda plan: plan.one_pass.saved_bytes,
                )
            plans.append(replace(planned[kind], stage=stage))
        components, fullest = _hold(config, plans, orders[pp_rank], num_micro_batches, num_shards)
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
    num_shards: int,
) -> tuple[Components, str]:
    """Give the bytes of a rank when it is fullest, and say when: in its passes or when gradients are reduced."""
    compute_bytes = getattr(torch, config.precision.compute_dtype).itemsize
    states = [plan.states for plan in plans]
    is_pipeline = config.parallel.pipeline_model_parallel_size > 1
    received = sum(
        (not plan.stage.is_first) + (not plan.stage.is_last) for plan in plans
    )  # torch has a buffer for each micro-batch and direction
    buffers = received * num_micro_batches * hidden_bytes(config) if is_pipeline else 0
    shards = sum(one.gradient_shards for one in states)
    largest = max(one.largest_group for one in states)
    accumulates = is_pipeline or num_micro_batches > 1
    whole = sum(one.whole_gradients for one in states)
    base = Components(
        parameters=sum(one.shards for one in states),
        gathered=sum(one.gathered for one in states),
        optimizer=sum(one.moments for one in states) - _followed(config, plans, num_shards),
    )
    in_passes = replace(
        base,
        gradients=whole if accumulates else shards,
        activations=_in_flight(plans, order, "saved_bytes"),
        logits=_in_flight(plans, order, "logits_bytes"),
        buffers=buffers
        + max(plan.one_pass.work_bytes for plan in plans)
        + largest * compute_bytes,  # gradients of a group, before they are added to the sums
    )
    in_reduction = replace(
        base,
        gradients=(whole if accumulates else 0) + shards,
        buffers=buffers + 2 * largest * FP32_BYTES,  # one is filled while the other is sent
    )
    if in_passes.total >= in_reduction.total:
        return in_passes, "passes"
    return in_reduction, "gradient reduction"


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
