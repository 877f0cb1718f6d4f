"""Context parallelism: which positions of every sequence a process holds, and how it gets the keys of the others.

A sequence is cut into 2c chunks of equal length for c processes; process r holds chunks r and 2c - 1 - r. A causal
query costs as much as there are keys before it, and each such pair of chunks costs the same. Knows nothing of heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.parallel.collectives import gather_from_sequence_parallel_region


@dataclass(frozen=True)
class ContextParallelRegion:
    """The processes that share every sequence, and this one's place among them."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None  # None: of one process

    def chunks(self, num_positions: int) -> tuple[range, ...]:
        """Give the positions of this process's num_positions tokens of a sample, s/c, in the order it holds them."""
        if self.size == 1:
            return (range(num_positions),)
        assert num_positions % 2 == 0
        length = num_positions // 2
        numbers = (self.rank, 2 * self.size - 1 - self.rank)
        return tuple(range(number * length, (number + 1) * length) for number in numbers)

    def positions(self, num_positions: int, device: torch.device | None = None) -> Tensor:
        """Give the same as int64 [s/c]."""
        chunks = self.chunks(num_positions)
        return torch.cat([torch.arange(c.start, c.stop, device=device) for c in chunks])

    def gather(self, x: Tensor) -> Tensor:
        """Join the sequence in order: [s/c, ...] -> [s, ...]. Collective over cp, in backward too (it sums)."""
        if self.group is None:
            return x
        pairs = gather_from_sequence_parallel_region(x, self.group)
        pairs = pairs.unflatten(0, (self.size, 2, -1))  # [c, 2, s/2c, ...]
        chunks = torch.cat([pairs[:, 0], pairs[:, 1].flip(0)])  # [2c, s/2c, ...]
        return chunks.flatten(0, 1)
