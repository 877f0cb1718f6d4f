"""How the processes reach each other: speed and delay by axis of the layout, and the clocks of the nodes. Collective."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron.parallel.context import ParallelContext

SMALL, NUM_TRIES = 8, 5
LARGE = {"cpu": 1 << 20, "cuda": 1 << 26}  # values


@dataclass(frozen=True)
class Link:
    """All-reduce in one group of an axis, as one process saw it."""

    axis: str
    ranks: tuple[int, ...]
    latency_seconds: float
    bytes_per_second: float


def measure_axes(context: ParallelContext) -> list[Link]:
    """Time all-reduces in this process's group of each axis. Collective over the world, one axis after the other."""
    groups = {
        "tp": context.tp_group,
        "pp": context.pp_group,
        "dp": context.mesh["dp_shard"].get_group(),
    }
    if context.cp.group is not None:
        groups["cp"] = context.cp.group
    if context.mesh["dp_replicate"].size() > 1:
        groups["dp nodes"] = context.mesh["dp_replicate"].get_group()
    links = []
    for axis, group in groups.items():
        dist.barrier()
        if dist.get_world_size(group) > 1:
            links.append(_measure(axis, group, context.device))
    return links


def _measure(axis: str, group: dist.ProcessGroup, device: torch.device) -> Link:
    size = dist.get_world_size(group)
    small = torch.zeros(SMALL, device=device)
    large = torch.zeros(LARGE[device.type], device=device)
    latency = _time(small, group)
    seconds = _time(large, group)
    moved = 2 * (size - 1) / size * large.numel() * large.element_size()
    return Link(axis, tuple(dist.get_process_group_ranks(group)), latency, moved / seconds)


def _time(values: torch.Tensor, group: dist.ProcessGroup) -> float:
    """Give the median of some all-reduces; the first ones set up connections. Synchronises the device."""
    seconds = []
    for _ in range(NUM_TRIES + 2):
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        if values.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def clock_offset() -> float:
    """Give by how many seconds this process's clock is ahead of rank 0's, within the time of a message. Collective."""
    rank, size = dist.get_rank(), dist.get_world_size()
    best = (float("inf"), 0.0)
    for other in range(1, size):
        for _ in range(NUM_TRIES):
            if rank == 0:
                _answer(other)
            elif rank == other:
                best = min(best, _ask())
    return best[1]


def _ask() -> tuple[float, float]:
    """Ask rank 0 for its time; give the time that took, and the offset."""
    value = torch.zeros(1, dtype=torch.float64)
    sent = time.time()
    dist.send(value, 0)
    dist.recv(value, 0)
    received = time.time()
    return received - sent, (sent + received) / 2 - float(value)


def _answer(other: int) -> None:
    value = torch.zeros(1, dtype=torch.float64)
    dist.recv(value, other)
    value[0] = time.time()
    dist.send(value, other)
