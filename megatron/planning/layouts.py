"""Every layout of a run over a number of processes, planned and ranked by predicted speed.

Of the options that do not change what is trained, those of ParallelConfig, the micro-batch size and recomputation are
varied; all others stay as given. What cannot win is left out: tensor parallelism between nodes or without sequence
parallelism, replicas without the distributed optimizer, recomputation where less of it fits. Knows nothing of how
plans are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.options import ParallelConfig
from megatron.planning.options import complete
from megatron.planning.plan import Plan, Question, make_plan
from megatron.planning.stage import Counts

SHORTEST_PIECE = 4096  # of a sequence that processes share, in tokens
MOST_TOKENS = 65536  # of a micro-batch on one process: products are as fast as they get long before
SMALL_BUBBLE = (
    0.05  # the share of a pipeline's passes below which no other schedule than 1F1B is tried
)
MOST_CHUNKS = 5  # of a rank
# The ways to recompute, by what they cost.
_NOTHING: dict[str, Any] = {
    "recompute_granularity": None,
    "recompute_modules": None,
    "recompute_method": None,
    "recompute_num_layers": None,
}
RECOMPUTE = (
    _NOTHING,
    _NOTHING
    | {"recompute_granularity": "selective", "recompute_modules": ("layernorm", "mlp_act")},
    _NOTHING | {"recompute_granularity": "full"},
)


@dataclass(frozen=True)
class Ranking:
    """The layouts that fit, fastest first, and why the others do not."""

    best: tuple[Plan, ...]
    num_layouts: int
    refused: Counter[str]  # by reason


def rank_layouts(config: Config, question: Question, number: int) -> Ranking:
    """Plan every layout and give the fastest that fit. Raises ConfigError if none does.

    config: with the size of its vocabulary; its own layout need not be one that can start.
    """
    if config.training.global_batch_size is None:
        raise ConfigError("--rank-layouts compares layouts of one batch: give --global-batch-size")
    counts = Counts()
    plans: list[Plan] = []
    refused: Counter[str] = Counter()
    for layout in enumerate_layouts(config, question):
        for recompute in RECOMPUTE:
            model = replace(layout.model, **recompute)
            try:
                whole = complete(replace(layout, model=model), question.world_size)
                plan = make_plan(whole, question, counts)
            except ConfigError as error:
                refused[_reason(error)] += 1
                break
            if plan.fits:
                plans.append(plan)
                break
            largest = plan.fullest.components.largest
            refused[f"a rank needs more memory than a device has, most for {largest}"] += 1
    num_layouts = len(plans) + sum(refused.values())
    if not plans:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in refused.most_common())
        raise ConfigError(f"none of {num_layouts} layouts fits {question.hardware.name}: {reasons}")
    plans.sort(key=lambda plan: (plan.step.seconds, plan.fullest.components.total))
    return Ranking(tuple(plans[:number]), num_layouts, refused)


def enumerate_layouts(config: Config, question: Question) -> Iterator[Config]:
    """Give the configs to compare, without recomputation, those that clash included."""
    world_size = question.world_size
    for tp in _divisors(world_size, question.hardware.devices_per_node):
        for cp in _divisors(world_size // tp, config.data.seq_length // SHORTEST_PIECE):
            for pp in _divisors(world_size // tp // cp, config.model.num_layers):
                dp = world_size // tp // cp // pp
                layout = ParallelConfig(
                    tensor_model_parallel_size=tp,
                    context_parallel_size=cp,
                    pipeline_model_parallel_size=pp,
                    sequence_parallel=tp > 1,
                    use_distributed_optimizer=dp * cp > 1,
                    distributed_backend=config.parallel.distributed_backend,
                    distributed_timeout_minutes=config.parallel.distributed_timeout_minutes,
                )
                yield from _batches(replace(config, parallel=layout), dp)


def _batches(config: Config, dp_size: int) -> Iterator[Config]:
    """Give a grid with every micro-batch size by doubling and every schedule."""
    assert config.training.global_batch_size is not None
    samples = config.training.global_batch_size // dp_size
    tokens = config.data.seq_length // config.parallel.context_parallel_size
    size = 1
    while size == 1 or (samples % size == 0 and size * tokens <= MOST_TOKENS):
        training = replace(config.training, micro_batch_size=size)
        for parallel in _schedules(config, samples // size):
            yield replace(config, parallel=parallel, training=training)
        size *= 2


def _schedules(config: Config, num_micro_batches: int) -> Iterator[ParallelConfig]:
    parallel, num_ranks = config.parallel, config.parallel.pipeline_model_parallel_size
    yield parallel
    # arXiv 2104.04473, section 2.2.1: (p - 1) / (m + p - 1) of the passes are idle
    if (num_ranks - 1) / (max(1, num_micro_batches) + num_ranks - 1) < SMALL_BUBBLE:
        return
    for number in range(2, MOST_CHUNKS + 1):
        if config.model.num_layers % (num_ranks * number) == 0:
            yield replace(parallel, num_virtual_stages_per_pipeline_rank=number)
    if config.model.num_layers % (2 * num_ranks) == 0:
        yield replace(parallel, pipeline_schedule="zbv")
        yield replace(parallel, pipeline_schedule="dualpipev")


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, max(1, most) + 1) if number % n == 0]


def _reason(error: ConfigError) -> str:
    """Give what is wrong without its numbers and without the remedy, so that like refusals count as one."""
    return re.sub(r"\b\d[\d,.]*\b", "N", str(error).split(";")[0])


def layout_flags(config: Config) -> list[str]:
    """Give the flags of a layout, to be added to those of the model and the run."""
    parallel, model = config.parallel, config.model
    flags = [
        *("--tensor-model-parallel-size", str(parallel.tensor_model_parallel_size)),
        *("--context-parallel-size", str(parallel.context_parallel_size)),
        *("--pipeline-model-parallel-size", str(parallel.pipeline_model_parallel_size)),
        *("--micro-batch-size", str(config.training.micro_batch_size)),
    ]
    if parallel.sequence_parallel:
        flags.append("--sequence-parallel")
    if parallel.use_distributed_optimizer:
        flags.append("--use-distributed-optimizer")
    if parallel.pipeline_schedule != "auto":
        flags += ["--pipeline-schedule", parallel.pipeline_schedule]
    if parallel.num_virtual_stages_per_pipeline_rank is not None:
        number = str(parallel.num_virtual_stages_per_pipeline_rank)
        flags += ["--num-virtual-stages-per-pipeline-rank", number]
    if model.recompute_granularity is not None:
        flags += ["--recompute-granularity", model.recompute_granularity]
    if model.recompute_modules is not None:
        flags += ["--recompute-modules", *model.recompute_modules]
    return flags
