"""How many bytes a second a process sends to others, within a node and between nodes.

Groups are those of a run: neighbours within a node, one process of each node between them, all groups at once as all
of a run communicate at once. Bytes are those of ring algorithms. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.parallel.launch import Launch
from megatron.planning.rates import Rate
from megatron.planning.stopwatch import NUM_WARM_UP, Stopwatch, num_calls

Link = Literal["node", "network"]

# The names from torch 2.13 on, as in `megatron.parallel.collectives`.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def measure_links(
    launch: Launch, stopwatch: Stopwatch, message_bytes: int, budget: float
) -> dict[Link, tuple[Rate, Rate]]:
    """Time collectives and sending to a neighbour: (collectives, neighbour) by link. Collective over the world.

    The slowest process decides. A world of one process has no links.
    """
    world, local = launch.world_size, launch.local_world_size
    groups: dict[Link, list[list[int]]] = {}
    if local > 1:
        groups["node"] = [[*range(first, first + local)] for first in range(0, world, local)]
    if world > local:
        groups["network"] = [[*range(first, world, local)] for first in range(local)]
    found = {}
    for link, ranks in groups.items():
        group, _ = dist.new_subgroups_by_enumeration(ranks)
        assert group is not None
        found[link] = _measure_group(group, stopwatch, message_bytes, budget / len(groups))
    return found


def _measure_group(
    group: dist.ProcessGroup, stopwatch: Stopwatch, message_bytes: int, budget: float
) -> tuple[Rate, Rate]:
    """Time what training sends in one group. Collective over the world."""
    size, rank, device = group.size(), group.rank(), stopwatch.device
    length = -(-message_bytes // (2 * size))
    part = torch.zeros(length, dtype=torch.bfloat16, device=device)
    whole = torch.zeros(size * length, dtype=torch.bfloat16, device=device)
    sent = whole.nbytes * (size - 1) / size
    following = dist.get_global_rank(group, (rank + 1) % size)
    previous = dist.get_global_rank(group, (rank - 1) % size)

    def exchange() -> None:
        requests = [
            dist.P2POp(dist.isend, part, following, group),
            dist.P2POp(dist.irecv, whole[:length], previous, group),
        ]
        for request in dist.batch_isend_irecv(requests):
            request.wait()

    collectives, neighbour = Rate(), Rate()
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "all_gather": (lambda: _all_gather(whole, part, group=group), sent),
        "reduce_scatter": (lambda: _reduce_scatter(part, whole, group=group), sent),
        "all_reduce": (lambda: dist.all_reduce(whole, group=group), 2 * sent),
    }
    for name, (call, num_bytes) in calls.items():
        collectives.add(name, num_bytes, _slowest(call, stopwatch, budget / (len(calls) + 1)))
    seconds = _slowest(exchange, stopwatch, budget / (len(calls) + 1))
    neighbour.add("to_neighbour", part.nbytes, seconds)
    return collectives, neighbour


def _slowest(call: Callable[[], object], stopwatch: Stopwatch, budget: float) -> float:
    """Give the median seconds of a call on the slowest process. Collective over the world."""
    for _ in range(NUM_WARM_UP):
        seconds = _maximum(stopwatch.once(call), stopwatch.device)
    # of a maximum over the world: every process repeats as often
    return _maximum(stopwatch.repeated(call, num_calls(seconds, budget)), stopwatch.device)


def _maximum(value: float, device: torch.device) -> float:
    """Give the largest of all processes' values. Collective over the world."""
    values: Tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return float(values)
