"""One stage of a pipeline as one process holds it: its states, and what a micro-batch keeps and does there.

Parameters, gradients and optimizer state follow from the shapes of the model as it is really built, and from how
`fully_shard` cuts and gathers them; activations come from `passes`. Knows nothing of other stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from megatron.config import Config
from megatron.kernels.registry import Kernels
from megatron.layer_split import PipelineSchedule, StageLayers
from megatron.model.gpt import GPTModel
from megatron.model.stage import build_stage
from megatron.options import OptimizerConfig
from megatron.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.parallel.parameter import local_part
from megatron.planning.order import Pass, order_passes
from megatron.planning.passes import StagePass, Work, count_pass
from megatron.planning.world import META, PlannedContext, compute_in

FP32_BYTES = 4


@dataclass(frozen=True)
class States:
    """Bytes of a stage's parameters and of what belongs to them."""

    num_parameters: int  # of this tensor parallel rank, before data parallelism cuts them
    shards: int
    gathered: int
    whole_gradients: int  # fp32 sums over micro-batches
    moments: int
    # what is gathered and reduced together, as padded to shards: the layers in order, then the rest
    group_sizes: tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """One stage as one tensor parallel rank holds it."""

    stage: StageLayers
    states: States
    one_pass: StagePass
    moved: dict[str, int]  # bytes sent over tp in both passes of a micro-batch, by collective
    moved_over_cp: int  # the same over cp, all collectives
    num_summed: int  # weights whose gradients products add to their sums


@dataclass(frozen=True)
class PartialRun:
    """A micro-batch through some layers of a stage."""

    one_pass: StagePass
    moved: dict[str, int]  # this and the following as in `StagePlan`
    moved_over_cp: int
    num_summed: int


def shard_length(length: int, num_shards: int, rank: int) -> int:
    """Give how many of a first dim's rows torch.chunk leaves to a rank."""
    size = -(-length // num_shards)
    return max(0, min(size, length - rank * size))


def moment_bytes(config: OptimizerConfig) -> int:
    """Give the bytes of both moments of one weight."""
    return sum(getattr(torch, dtype).itemsize for dtype in config.moment_dtypes)


def count_states(
    groups: Sequence[Sequence[Tensor]],
    num_shards: int,
    compute_bytes: int,
    *,
    moment_bytes: int,
    shard_rank: int = 0,
) -> States:
    """Count what data parallelism and the optimizer allocate for groups of parameters.

    A shard is padded to that of rank 0; moments are not. compute_bytes, moment_bytes: of one weight.
    """
    whole = held = 0
    sizes = []
    for group in groups:
        size = 0
        for part in map(local_part, group):
            row = math.prod(part.shape[1:])
            size += -(-part.size(0) // num_shards) * num_shards * row
            held += shard_length(part.size(0), num_shards, shard_rank) * row
            whole += part.numel()
        sizes.append(size)
    padded = sum(sizes)
    return States(
        num_parameters=whole,
        shards=padded // num_shards * FP32_BYTES,
        gathered=padded * compute_bytes,
        whole_gradients=whole * FP32_BYTES,
        moments=held * moment_bytes,
        group_sizes=tuple(sizes),
    )


def parameter_groups(model: GPTModel) -> list[list[nn.Parameter]]:
    """Give the groups that `shard_data_parallel` makes: each layer, and what is outside of layers."""
    layers = [list(layer.parameters()) for layer in model.layers.values()]
    inside = {id(p) for layer in layers for p in layer}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [*layers, rest] if rest else layers


@dataclass
class Counts:
    """What was counted before, on one kind of hardware: layouts of a model share most of their stages.

    A key holds all that a count depends on.
    """

    parameters: dict[object, list[list[nn.Parameter]]] = field(default_factory=dict)
    runs: dict[object, PartialRun] = field(default_factory=dict)
    orders: dict[object, list[list[Pass]]] = field(default_factory=dict)

    def order_passes(
        self, schedule: PipelineSchedule, num_ranks: int, num_stages: int, num_micro_batches: int
    ) -> list[list[Pass]]:
        """Do what `order.order_passes` does."""
        key = (schedule, num_ranks, num_stages, num_micro_batches)
        if key not in self.orders:
            self.orders[key] = order_passes(*key)
        return self.orders[key]


def plan_stage(
    config: Config,
    stage: StageLayers,
    kernels: Kernels,
    *,
    tp_rank: int,
    num_shards: int,
    sums_gradients: bool = False,
    is_alone: bool = False,
    counts: Counts | None = None,
) -> StagePlan:
    """Build a stage for one tensor parallel rank, and run a micro-batch through it or through part of it.

    sums_gradients: products add weights' gradients to sums. is_alone: the process shares its gradients with no other
    (`MasterWeights`): each goes by itself to its sum.
    """
    counts = counts or Counts()
    states = count_states(
        _build(config, stage, kernels, tp_rank, counts),
        num_shards,
        getattr(torch, config.precision.compute_dtype).itemsize,
        moment_bytes=moment_bytes(config.optimizer),
    )
    number = len(stage.layers)
    if number <= 2 or not _are_layers_alike(config):
        run = _run(config, stage, kernels, tp_rank, counts, sums_gradients, is_alone)
        return StagePlan(stage, states, run.one_pass, run.moved, run.moved_over_cp, run.num_summed)
    # two layers and one of them tell what the others do
    first = stage.layers.start
    one, two = (
        _run(
            config,
            replace(stage, layers=range(first, first + n)),
            kernels,
            tp_rank,
            counts,
            sums_gradients,
            is_alone,
        )
        for n in (1, 2)
    )
    more = number - 2
    moved = {name: n + more * (n - one.moved.get(name, 0)) for name, n in two.moved.items()}
    return StagePlan(
        stage,
        states,
        replace(
            two.one_pass,
            saved_bytes=_extend(one.one_pass.saved_bytes, two.one_pass.saved_bytes, more),
            forward=_extend_work(one.one_pass.forward, two.one_pass.forward, more),
            backward=_extend_work(one.one_pass.backward, two.one_pass.backward, more),
        ),
        moved,
        _extend(one.moved_over_cp, two.moved_over_cp, more),
        _extend(one.num_summed, two.num_summed, more),
    )


def _are_layers_alike(config: Config) -> bool:
    """Whether recomputation, if any, treats every layer of a stage by itself and in one way."""
    model = config.model
    if model.recompute_granularity != "full":
        return True
    return model.recompute_method != "block" and model.recompute_num_layers in (None, 1)


def _extend(one: int, two: int, more: int) -> int:
    """Add to what two layers come to what more of them do."""
    return two + more * (two - one)


def _extend_work(one: Work, two: Work, more: int) -> Work:
    return Work(
        **{
            item.name: (value := getattr(two, item.name)) + more * (value - getattr(one, item.name))
            for item in fields(Work)
        }
    )


def _build(
    config: Config, stage: StageLayers, kernels: Kernels, tp_rank: int, counts: Counts
) -> list[list[nn.Parameter]]:
    """Give the groups of parameters of a stage as it is built on the meta device."""
    tp_size = config.parallel.tensor_model_parallel_size
    key = (config.model, tp_size, tp_rank, len(stage.layers), stage.is_first, stage.is_last)
    if key not in counts.parameters:
        model = build_stage(config, PlannedContext.at(tp_rank, tp_size), stage, kernels)
        counts.parameters[key] = parameter_groups(model)
    return counts.parameters[key]


class _MetaSum:
    """A sum of gradients, of which only its being there and the work of adding to it are counted."""

    def __init__(self, weight: Tensor) -> None:
        # in the weight's dtype: on the meta device no product adds to one of another, as a GPU's do to fp32
        local = local_part(weight)
        self.total = torch.empty_like(local)
        self.is_used = False

    def add(self, grad: Tensor, x: Tensor) -> bool:
        """Do what `GradientSum.add` does."""
        self.total.addmm_(grad.t(), x)
        self.is_used = True
        return True


def _keep_sums(model: GPTModel) -> dict[nn.Parameter, _MetaSum]:
    """Let products add to sums where `fuse_gradient_accumulation` does."""
    sums = {}
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module.gradient_sum = sums[module.weight] = _MetaSum(module.weight)
    return sums


def _run(
    config: Config,
    stage: StageLayers,
    kernels: Kernels,
    tp_rank: int,
    counts: Counts,
    sums_gradients: bool,
    is_alone: bool,
) -> PartialRun:
    """Run a micro-batch through a stage on the meta device."""
    parallel, training = config.parallel, config.training
    tp_size, cp_size = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    key = (
        (config.model, config.precision, config.data, training.micro_batch_size, training.seed),
        (tp_size, tp_rank, cp_size, parallel.sequence_parallel, sums_gradients, is_alone),
        (len(stage.layers), stage.is_first, stage.is_last),
    )
    if key in counts.runs:
        return counts.runs[key]
    dtype = getattr(torch, config.precision.compute_dtype)
    context = PlannedContext.at(tp_rank, tp_size, cp_size)
    model = build_stage(config, context, stage, kernels)
    compute_in(model, dtype)
    sums = _keep_sums(model) if sums_gradients else {}
    b, s = training.micro_batch_size, local_length(config)
    ids = torch.empty(b, s, dtype=torch.int64, device=META)
    x = ids
    if not stage.is_first:
        x = torch.empty(hidden_shape(config), dtype=dtype, device=META, requires_grad=True)
    chunk_size = config.model.logits_chunk_size
    are_whole = stage.is_last and (chunk_size is None or chunk_size >= b * s)
    logits = (s, b, config.model.padded_vocab_size // tp_size) if are_whole else None
    inputs = {
        "x": x,
        "sample_ids": torch.zeros(b, dtype=torch.int64),
        "labels": ids if stage.is_last else None,
    }
    groups = [[p] for p in model.parameters()] if is_alone else parameter_groups(model)
    one_pass = count_pass(
        model,
        inputs,
        logits,
        groups=[[p for p in group if p not in sums] for group in groups],
        sums=[one.total for one in sums.values()],
    )
    counts.runs[key] = PartialRun(
        one_pass,
        dict(context.moved),
        sum(context.moved_over_cp.values()),
        sum(one.total.numel() for one in sums.values() if one.is_used),
    )
    return counts.runs[key]


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
