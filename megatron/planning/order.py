"""The order in which the ranks of a pipeline run their passes, and what follows from it: idle time, activations held.

The orders are torch's own, read from its schedules without running them. Knows nothing of models or devices.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch.distributed.pipelining import (
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from megatron.layer_split import PipelineSchedule

# forward, whole backward, backward of the hidden states only, backward of the weights only
Kind = Literal["F", "B", "I", "W"]


@dataclass(frozen=True)
class Pass:
    """One pass of one micro-batch through one stage."""

    kind: Kind
    stage: int
    micro_batch: int


@dataclass
class _Stage:
    """As much of a stage as torch's schedules look at when they order passes."""

    stage_index: int
    num_stages: int
    group_size: int
    group_rank: int = 0
    submod: None = None
    has_backward: bool = True
    stage_index_to_group_rank: Any = None

    @property
    def is_first(self) -> bool:
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        return self.stage_index == self.num_stages - 1


def order_passes(
    schedule: PipelineSchedule, num_ranks: int, num_stages: int, num_micro_batches: int
) -> list[list[Pass]]:
    """Give the passes of every rank in the order in which it runs them."""
    if schedule == "1f1b":
        return [
            _one_forward_one_backward(r, num_ranks, num_micro_batches) for r in range(num_ranks)
        ]
    classes = {
        "interleaved": ScheduleInterleaved1F1B,
        "zbv": ScheduleZBVZeroBubble,
        "dualpipev": ScheduleDualPipeV,
    }
    indices = range(0, num_stages, num_ranks) if schedule == "interleaved" else (0, num_stages - 1)
    stages: list[Any] = [_Stage(index, num_stages, num_ranks) for index in indices]
    made = classes[schedule](stages, num_micro_batches)
    return [
        [one for action in made.pipeline_order[rank] if action for one in _passes(action)]
        for rank in range(num_ranks)
    ]


def join_halves(order: Sequence[Pass]) -> list[Pass]:
    """Give the order of a rank that computes both halves of a backward pass at the time of the first one."""
    return [replace(one, kind="B") if one.kind == "I" else one for one in order if one.kind != "W"]


def _passes(action: Any) -> list[Pass]:
    """Take torch's action apart; a forward that overlaps a backward runs before it."""
    if action.sub_actions:
        return [one for part in action.sub_actions for one in _passes(part)]
    return [Pass(action.computation_type.value, action.stage_index, action.microbatch_index)]


def _one_forward_one_backward(rank: int, num_ranks: int, number: int) -> list[Pass]:
    """Order as torch's Schedule1F1B does, which keeps no list of it."""
    num_warmup = min(number, num_ranks - rank)
    forward = [Pass("F", rank, n) for n in range(number)]
    backward = [Pass("B", rank, n) for n in range(number)]
    order = forward[:num_warmup]
    for done, late in zip(backward, forward[num_warmup:], strict=False):
        order += [done, late]
    return order + backward[number - num_warmup :]


def most_in_flight(order: Sequence[Pass], sizes: Mapping[int, float]) -> float:
    """Give the most that a rank holds at once if a micro-batch of a stage takes sizes[stage].

    From its forward to the end of its backward, the weights' half included.
    """
    held = most = 0.0
    for one in order:
        if one.kind == "F":
            held += sizes[one.stage]
        elif one.kind != "I":
            held -= sizes[one.stage]
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Timeline:
    """When the passes of a step end."""

    seconds: float
    busy: tuple[float, ...]  # of each rank

    @property
    def bubble(self) -> float:
        """The share of the step that ranks idle, on average."""
        return 1.0 - sum(self.busy) / len(self.busy) / self.seconds


def run_passes(
    orders: Sequence[Sequence[Pass]],
    durations: Mapping[tuple[Kind, int], float],
    transfer: float,
) -> Timeline:
    """Let every rank run its passes as early as order and inputs allow.

    durations: of a pass by (kind, stage). transfer: from a stage to its neighbour on another rank.
    """
    num_stages = 1 + max(one.stage for order in orders for one in order)
    home = {one.stage: rank for rank, order in enumerate(orders) for one in order}
    ends: dict[tuple[str, int, int], float] = {}
    left = [deque(order) for order in orders]
    clocks, busy = [0.0] * len(orders), Counter[int]()
    while any(left):
        before = sum(map(len, left))
        for rank, passes in enumerate(left):
            while passes:
                one = passes[0]
                ready = _ready_at(one, ends, home, num_stages, transfer)
                if ready is None:
                    break
                passes.popleft()
                duration = durations[one.kind, one.stage]
                clocks[rank] = max(clocks[rank], ready) + duration
                busy[rank] += duration  # type: ignore[assignment]
                kind = "backward" if one.kind in "BI" else one.kind
                ends[kind, one.stage, one.micro_batch] = clocks[rank]
        assert sum(map(len, left)) < before, "the order waits for itself"
    return Timeline(max(clocks), tuple(float(busy[rank]) for rank in range(len(orders))))


def _ready_at(
    one: Pass,
    ends: Mapping[tuple[str, int, int], float],
    home: Mapping[int, int],
    num_stages: int,
    transfer: float,
) -> float | None:
    """Give the time at which the inputs of a pass are there, None if they are not yet known to come."""
    if one.kind == "W":
        return ends.get(("backward", one.stage, one.micro_batch))
    kind, other = ("F", one.stage - 1) if one.kind == "F" else ("backward", one.stage + 1)
    if not 0 <= other < num_stages:
        return 0.0 if one.kind == "F" else ends.get(("F", one.stage, one.micro_batch))
    end = ends.get((kind, other, one.micro_batch))
    if end is None:
        return None
    return end + (transfer if home[other] != home[one.stage] else 0.0)
