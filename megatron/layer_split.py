"""Which layers each stage of a pipeline holds: the one place that decides it, by Megatron's options.

Knows ranks of a pipeline by their number only; nothing of processes, nor of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from megatron.option_field import require
from megatron.options import ParallelConfig

FIRST = "--decoder-first-pipeline-num-layers"
LAST = "--decoder-last-pipeline-num-layers"
EMBEDDING = "--account-for-embedding-in-pipeline-split"
LOSS = "--account-for-loss-in-pipeline-split"
RANKS = "--pipeline-model-parallel-size"
SCHEDULE = "--pipeline-schedule"
CHUNK_SIZE = "--num-layers-per-virtual-pipeline-stage"
NUM_CHUNKS = "--num-virtual-stages-per-pipeline-rank"

PipelineSchedule = Literal["1f1b", "interleaved", "zbv", "dualpipev"]


@dataclass(frozen=True)
class StageLayers:
    """The slice of the model that one stage holds. A process may hold several."""

    index: int
    num_stages: int
    layers: range

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1


def assign_stages(num_layers: int, parallel: ParallelConfig, rank: int) -> list[StageLayers]:
    """Give the stages of a pipeline rank, in the model's order. ConfigError as `split_layers`."""
    split = split_layers(num_layers, parallel)
    if parallel.has_stages_in_v:
        indices = [rank, len(split) - 1 - rank]
    else:
        indices = list(range(rank, len(split), parallel.pipeline_model_parallel_size))
    return [StageLayers(index, len(split), split[index]) for index in indices]


def split_layers(num_layers: int, parallel: ParallelConfig) -> list[range]:
    """Give the layers of every stage, in the model's order; `assign_stages` says where each of them lies.

    A stage is a rank's part of the model or one of its chunks; interleaved, those of a rank are of one size. In a V
    the ends that options speak of are the first and the last stage, not all that the first and the last rank hold.
    An embedding or a loss that counts as a layer takes the place of one in the first or the last stage, which can
    be left with none. Raises ConfigError for a split that cannot be.
    """
    _check_schedule(parallel)
    count = _uneven if _given_ends(parallel) else _even
    sizes = count(num_layers, parallel)
    if not parallel.has_stages_in_v:
        num_chunks = _chunks_of_a_rank(sizes, parallel)
        require(
            num_chunks > 1 or parallel.pipeline_schedule != "interleaved",
            f"{SCHEDULE} interleaved needs 2 or more chunks on each rank; give {NUM_CHUNKS} 2, or fewer layers by "
            f"{CHUNK_SIZE}",
        )
        sizes = [size // num_chunks for _ in range(num_chunks) for size in sizes]
    sizes[0] -= parallel.account_for_embedding_in_pipeline_split
    sizes[-1] -= parallel.account_for_loss_in_pipeline_split
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def resolve_schedule(num_stages: int, parallel: ParallelConfig) -> PipelineSchedule:
    """Give the schedule of a pipeline of so many stages: the one asked for, or what auto stands for."""
    if parallel.pipeline_schedule != "auto":
        return parallel.pipeline_schedule
    is_interleaved = num_stages > parallel.pipeline_model_parallel_size
    return "interleaved" if is_interleaved else "1f1b"


def _check_schedule(parallel: ParallelConfig) -> None:
    """Raise ConfigError if the schedule asked for has no pipeline to order, or other chunks than asked for."""
    schedule = parallel.pipeline_schedule
    if schedule == "auto":
        return
    chunks = {
        CHUNK_SIZE: parallel.num_layers_per_virtual_pipeline_stage,
        NUM_CHUNKS: parallel.num_virtual_stages_per_pipeline_rank,
    }
    given = " and ".join(f"{flag} {value}" for flag, value in chunks.items() if value is not None)
    require(
        parallel.pipeline_model_parallel_size > 1,
        f"{SCHEDULE} {schedule} is for a pipeline, and {RANKS} is 1; raise it or leave the option out",
    )
    number = "two stages" if parallel.has_stages_in_v else "one stage"
    require(
        schedule == "interleaved" or not given,
        f"{SCHEDULE} {schedule} has {number} on each rank and clashes with {given}; leave that out, or ask for "
        f"{SCHEDULE} interleaved",
    )


def _parts(parallel: ParallelConfig) -> tuple[int, str]:
    """Give the number of parts that layers are counted for, ranks or the stages of a V, and name them."""
    num_ranks = parallel.pipeline_model_parallel_size
    if not parallel.has_stages_in_v:
        return num_ranks, f"{RANKS} {num_ranks}"
    num_stages, schedule = 2 * num_ranks, f"{SCHEDULE} {parallel.pipeline_schedule}"
    return num_stages, f"{RANKS} {num_ranks} ({num_stages} stages by {schedule})"


def _given_ends(parallel: ParallelConfig) -> dict[str, int]:
    """Give the layers that the options state for the first part, the last one or both, by flag."""
    sizes = {
        FIRST: parallel.decoder_first_pipeline_num_layers,
        LAST: parallel.decoder_last_pipeline_num_layers,
    }
    return {flag: size for flag, size in sizes.items() if size is not None}


def _counted_ends(parallel: ParallelConfig) -> list[str]:
    """Give the flags that are set by which the embedding or the loss counts as a layer."""
    flags = {
        EMBEDDING: parallel.account_for_embedding_in_pipeline_split,
        LOSS: parallel.account_for_loss_in_pipeline_split,
    }
    return [flag for flag, is_set in flags.items() if is_set]


def _even(num_layers: int, parallel: ParallelConfig) -> list[int]:
    """Count the layers of each part, those that the embedding and the loss count as included."""
    num_parts, parts = _parts(parallel)
    counted = _counted_ends(parallel)
    total = num_layers + len(counted)
    what = f"--num-layers {num_layers}"
    if counted:
        what += f" plus {len(counted)} by {' and '.join(counted)}, which is {total}"
    require(
        total % num_parts == 0,
        f"{parts} does not divide {what}; change one of them, or split unevenly with "
        f"{FIRST} or {LAST}",
    )
    return [total // num_parts] * num_parts


def _uneven(num_layers: int, parallel: ParallelConfig) -> list[int]:
    """Count the layers of each part where options state those of an end: the others share the rest evenly."""
    num_parts, parts = _parts(parallel)
    ends = _given_ends(parallel)
    what = " and ".join(f"{flag} {size}" for flag, size in ends.items())
    counted = " and ".join(_counted_ends(parallel))
    require(not counted, f"{what} clashes with {counted}; keep one of the two ways to split")
    require(
        num_parts > 1,
        f"{what}: for a pipeline, and {RANKS} is 1; raise it or leave the option out",
    )
    num_others = num_parts - len(ends)
    left = num_layers - sum(ends.values())
    require(
        left == 0 if num_others == 0 else left > 0 and left % num_others == 0,
        f"{what} leaves {left} of --num-layers {num_layers} to the {num_others} other stages of {parts}; "
        + (f"leave a multiple of {num_others} above 0" if num_others else "make them add up"),
    )
    middle = left // num_others if num_others else 0
    return [ends.get(FIRST, middle), *[middle] * (num_parts - 2), ends.get(LAST, middle)]


def _chunks_of_a_rank(ranks: list[int], parallel: ParallelConfig) -> int:
    """Count the chunks that the layers of each rank are cut into: 1 unless the pipeline is interleaved."""
    size = parallel.num_layers_per_virtual_pipeline_stage
    number = parallel.num_virtual_stages_per_pipeline_rank
    if size is None and number is None:
        return 1
    require(
        size is None or number is None,
        f"{CHUNK_SIZE} {size} and {NUM_CHUNKS} {number} say the same in two ways; leave one of them out",
    )
    require(
        len(ranks) > 1,
        f"{CHUNK_SIZE if number is None else NUM_CHUNKS} interleaves a pipeline and {RANKS} is 1; "
        f"raise it or leave the option out",
    )
    with_ends = "".join(f", with {flag}" for flag in _counted_ends(parallel))
    if number is not None:
        require(
            all(layers % number == 0 for layers in ranks),
            f"{NUM_CHUNKS} {number} does not divide the layers of every pipeline rank, "
            f"{', '.join(map(str, ranks))}{with_ends}; change it or the split",
        )
        return number
    assert size is not None
    ends = " and ".join(_given_ends(parallel))
    require(not ends, f"{CHUNK_SIZE} clashes with {ends}; interleave with {NUM_CHUNKS} instead")
    require(
        ranks[0] % size == 0,
        f"{CHUNK_SIZE} {size} does not divide the {ranks[0]} layers of a stage{with_ends}; change one of them",
    )
    return ranks[0] // size
