"""How long a step takes on a kind of machine, what crosses which links, and what the run costs: a model, not counts.

Assumed: an operation takes as long as its arithmetic or its memory traffic, whichever is longer, at the shares of the
peaks that the hardware file states; each runs alone, by the kernel that the run would choose; communication overlaps with nothing; collectives go around rings. Validation, checkpoints, restarts and the
loader cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.model.flops import FlopsPerToken, attended_pairs, flops_per_token
from megatron.planning.attention import BACKWARD_ATTENTION
from megatron.planning.documents import expected_pairs
from megatron.planning.hardware import Hardware
from megatron.planning.kernels import KEEPS_SCORES, attention_of, choose_planned_kernels
from megatron.planning.memory import RankPlan
from megatron.planning.order import Kind, Timeline, run_passes
from megatron.planning.stage import FP32_BYTES, StagePlan, hidden_bytes, moment_bytes


@dataclass(frozen=True)
class PassTime:
    """Seconds of one micro-batch in one stage, one direction, by kind of work."""

    products: float
    attention: float
    memory: float
    communication: float  # over tp and cp

    @property
    def total(self) -> float:
        return self.products + self.attention + self.memory + self.communication


@dataclass(frozen=True)
class AxisTraffic:
    """What one process sends over one axis in a step."""

    axis: str
    size: int
    bytes_sent: float
    is_within_node: bool
    seconds: float


@dataclass(frozen=True)
class StepPlan:
    """A step of the run."""

    seconds: float
    bubble: float  # share of the passes' time
    passes_seconds: float
    optimizer_seconds: float
    traffic: tuple[AxisTraffic, ...]
    tokens: int
    world_size: int
    flops: FlopsPerToken
    attention_share: float  # that documents leave of the pairs of whole samples
    peak_flops: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu_full(self) -> float:
        return self._mfu(self.flops.full)

    @property
    def mfu_causal(self) -> float:
        return self._mfu(self.flops.within_documents(self.attention_share))

    def _mfu(self, flops: float) -> float:
        return self.tokens_per_second * flops / self.world_size / self.peak_flops


@dataclass(frozen=True)
class RunCost:
    """What the whole run takes."""

    steps: float
    tokens: int
    days: float
    device_hours: float
    energy_kwh: float | None  # of the devices; None: what they draw is not known
    co2_tonnes: float | None


def plan_step(
    config: Config,
    world_size: int,
    hardware: Hardware,
    ranks: Sequence[RankPlan],
    document_length: int | None = None,
) -> StepPlan:
    """Model a step of planned ranks. document_length: mean of those that do not see each other, None: samples."""
    length, window = config.data.seq_length, config.model.window_size
    pairs = expected_pairs(length, document_length, window)
    forward: dict[int, PassTime] = {}
    backward: dict[int, PassTime] = {}
    for rank in ranks:
        for plan in rank.stages:
            forward[plan.stage.index] = _pass_time(config, hardware, plan, pairs, is_forward=True)
            backward[plan.stage.index] = _pass_time(config, hardware, plan, pairs, is_forward=False)
    traffic = _traffic(config, world_size, hardware, ranks)
    timeline = _timeline(config, world_size, hardware, ranks, forward, backward)
    optimizer = _optimizer_seconds(config, hardware, ranks)
    dp_seconds = sum(one.seconds for one in traffic if one.axis == "dp")
    batch = config.global_batch_size(config.parallel.data_parallel_size(world_size))
    return StepPlan(
        seconds=timeline.seconds + dp_seconds + optimizer,
        bubble=timeline.bubble,
        passes_seconds=timeline.seconds,
        optimizer_seconds=optimizer,
        traffic=tuple(traffic),
        tokens=batch * config.data.seq_length,
        world_size=world_size,
        flops=flops_per_token(config.model, length),
        attention_share=pairs / attended_pairs(length, window),
        peak_flops=_peak(config, hardware),
    )


def plan_run(
    config: Config, step: StepPlan, hardware: Hardware, *, pue: float, carbon_intensity: float
) -> RunCost:
    """Multiply a step by the length of the run; steps of a batch that still grows count by their samples.

    pue: energy of the data center for one of the devices'. carbon_intensity: kg CO2 equivalent a kWh.
    """
    samples = config.num_samples(config.parallel.data_parallel_size(step.world_size))
    steps = samples * config.data.seq_length / step.tokens
    hours = steps * step.seconds / 3600
    device_hours = hours * step.world_size
    watts = hardware.power_watts
    energy = None if watts is None else device_hours * watts / 1000
    return RunCost(
        steps=steps,
        tokens=samples * config.data.seq_length,
        days=hours / 24,
        device_hours=device_hours,
        energy_kwh=energy,
        co2_tonnes=None if energy is None else energy * pue * carbon_intensity / 1000,
    )


def _peak(config: Config, hardware: Hardware) -> float:
    return _peak_of(config.precision.compute_dtype, hardware)


def _peak_of(dtype: str, hardware: Hardware) -> float:
    if dtype not in hardware.peak_flops:
        known = ", ".join(hardware.peak_flops)
        raise ConfigError(f"{hardware.name} has no peak_flops of {dtype}; it states {known}")
    return hardware.peak_flops[dtype]


def _pass_time(
    config: Config, hardware: Hardware, plan: StagePlan, pairs: float, *, is_forward: bool
) -> PassTime:
    """Time a micro-batch's pass through one stage. pairs: of positions of a sample, as `attended_pairs` counts."""
    work = plan.one_pass.forward if is_forward else plan.one_pass.backward
    peak, efficiency = _peak(config, hardware), hardware.efficiency
    bandwidth = hardware.memory_bandwidth * efficiency.memory
    moved = work.other_bytes
    if not is_forward:  # a gradient that no product adds to its fp32 sum: both read, one written
        compute_bytes = getattr(torch, config.precision.compute_dtype).itemsize
        num_added = plan.states.num_parameters - plan.num_summed
        moved += num_added * (compute_bytes + 2 * FP32_BYTES)
    products = work.product_flops / (peak * efficiency.product)
    if work.eight_bit_flops > 0.0:
        products += work.eight_bit_flops / (_peak_of("float8", hardware) * efficiency.product)
    products = max(products, work.product_bytes / bandwidth)
    return PassTime(
        products,
        _attention_seconds(config, hardware, len(plan.stage.layers), pairs, is_forward=is_forward),
        moved / bandwidth,
        # as much in backward as in forward, but for what a recomputation repeats
        _send_seconds(config, hardware, "tp", sum(plan.moved.values()) / 2)
        + _send_seconds(config, hardware, "cp", plan.moved_over_cp / 2),
    )


def _attention_seconds(
    config: Config, hardware: Hardware, num_layers: int, pairs: float, *, is_forward: bool
) -> float:
    """Time fused attention of some layers; kernels that keep the scores are counted in products instead."""
    model = config.model
    kernel = attention_of(choose_planned_kernels(config, hardware))
    if kernel in KEEPS_SCORES:
        return 0.0
    heads = model.num_attention_heads // config.parallel.tensor_model_parallel_size
    # a square counts pairs twice, of which causality leaves one; two products of 2 FLOPs a channel
    flops = 2.0 * pairs * config.training.micro_batch_size * heads * model.head_dim * num_layers
    flops /= config.parallel.context_parallel_size  # shares are cut so that they cost alike
    peak, efficiency = _peak(config, hardware), hardware.efficiency
    if kernel == "flash":
        peak *= efficiency.flash
    forward = flops / (peak * efficiency.attention_forward)
    if is_forward:
        return forward
    backward = BACKWARD_ATTENTION * flops / (peak * efficiency.attention_backward)
    return backward + (forward if model.recompute_granularity == "full" else 0.0)


def _timeline(
    config: Config,
    world_size: int,
    hardware: Hardware,
    ranks: Sequence[RankPlan],
    forward: dict[int, PassTime],
    backward: dict[int, PassTime],
) -> Timeline:
    """Let the passes of a step run."""
    durations: dict[tuple[Kind, int], float] = {}
    for stage, one in backward.items():
        weights = one.products / 2  # half of the products are the weights'
        durations["F", stage] = forward[stage].total
        durations["B", stage] = one.total
        durations["I", stage] = one.total - weights
        durations["W", stage] = weights
    transfer = 0.0
    if config.parallel.pipeline_model_parallel_size > 1:
        transfer = _send_seconds(config, hardware, "pp", hidden_bytes(config), world_size)
    return run_passes([rank.order for rank in ranks], durations, transfer)


def _optimizer_seconds(config: Config, hardware: Hardware, ranks: Sequence[RankPlan]) -> float:
    """Time the gradients' norm, AdamW and the cast of the weights: reads and writes of the fullest rank's shards."""
    num_weights = max(rank.components.parameters for rank in ranks) / FP32_BYTES
    compute_bytes = getattr(torch, config.precision.compute_dtype).itemsize
    # gradients read for the norm and again for the update; weights and moments read and written
    moved = 4 * FP32_BYTES + 2 * moment_bytes(config.optimizer)
    if compute_bytes != FP32_BYTES:
        moved += FP32_BYTES + compute_bytes
    return moved * num_weights / (hardware.memory_bandwidth * hardware.efficiency.memory)


def _spans(config: Config, world_size: int) -> dict[str, int]:
    """Give how many neighbouring processes a group of each axis reaches over."""
    tp = config.parallel.tensor_model_parallel_size
    dp = config.parallel.data_parallel_size(world_size)
    cp = config.parallel.context_parallel_size
    return {"tp": tp, "cp": tp * cp, "dp": tp * cp * dp, "pp": world_size}


def _send_seconds(
    config: Config,
    hardware: Hardware,
    axis: str,
    num_bytes: float,
    world_size: int | None = None,
) -> float:
    """Time what a process sends over an axis, by its slowest link. ConfigError if that is not known."""
    if num_bytes == 0:
        return 0.0
    world_size = world_size or config.parallel.model_parallel_size
    is_within = _spans(config, world_size)[axis] <= hardware.devices_per_node
    name = "node_bandwidth" if is_within else "network_bandwidth"
    link: float | None = getattr(hardware, name)
    if link is None:
        raise ConfigError(
            f"{hardware.name} has no {name}, which {axis} needs here: write it into the --hardware file, or "
            f"let several processes measure it (torchrun … tools/plan.py --calibrate)"
        )
    return num_bytes / (link * hardware.efficiency.link)


def _traffic(
    config: Config, world_size: int, hardware: Hardware, ranks: Sequence[RankPlan]
) -> list[AxisTraffic]:
    """Count what one process sends in a step over each axis, of the pipeline rank that sends most."""
    parallel = config.parallel
    dp_size = parallel.data_parallel_size(world_size)
    batch = config.global_batch_size(dp_size)
    num_micro_batches = batch // (config.training.micro_batch_size * dp_size)
    tp_bytes = num_micro_batches * max(
        sum(sum(plan.moved.values()) for plan in rank.stages) for rank in ranks
    )
    cp_bytes = num_micro_batches * max(
        sum(plan.moved_over_cp for plan in rank.stages) for rank in ranks
    )
    sends = max(
        sum((not plan.stage.is_first) + (not plan.stage.is_last) for plan in rank.stages)
        for rank in ranks
    )
    pp_bytes = sends * num_micro_batches * hidden_bytes(config)
    if parallel.pipeline_model_parallel_size == 1:
        pp_bytes = 0
    dp_bytes = max(_dp_bytes(config, world_size, rank) for rank in ranks)
    sizes = {
        "tp": (parallel.tensor_model_parallel_size, tp_bytes),
        "cp": (parallel.context_parallel_size, cp_bytes),
        "dp": (dp_size * parallel.context_parallel_size, dp_bytes),
        "pp": (parallel.pipeline_model_parallel_size, pp_bytes),
    }
    spans = _spans(config, world_size)
    return [
        AxisTraffic(
            axis,
            size,
            sent,
            spans[axis] <= hardware.devices_per_node,
            _send_seconds(config, hardware, axis, sent, world_size),
        )
        for axis, (size, sent) in sizes.items()
    ]


def _dp_bytes(config: Config, world_size: int, rank: RankPlan) -> float:
    """Count what gathering the weights and reducing the gradients of a step sends from one process."""
    copies, num_shards = config.parallel.gradient_sizes(world_size)
    compute_bytes = getattr(torch, config.precision.compute_dtype).itemsize
    whole = rank.components.gathered / compute_bytes
    sharded = (num_shards - 1) / num_shards * whole * (compute_bytes + FP32_BYTES)
    summed = 2 * (copies - 1) / copies * whole / num_shards * FP32_BYTES
    return sharded + summed
