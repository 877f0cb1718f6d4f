"""The communication of tensor and sequence parallelism: functions on local tensors, in conjugate pairs.

    region function                             forward                    backward
    copy_to_tensor_model_parallel_region        identity                   all-reduce
    reduce_from_tensor_model_parallel_region    all-reduce                 identity
    gather_from_sequence_parallel_region        all-gather along dim 0     reduce-scatter along dim 0
    reduce_scatter_to_sequence_parallel_region  reduce-scatter along 0     all-gather along dim 0

Each is collective over its group in both directions and does nothing in a group of one. Sequence is dim 0
(activations are [s, b, h]), so shards are contiguous. Knows nothing of meshes, layers or parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import Partial, Replicate
from torch.distributed.tensor.placement_types import Placement

# torch 2.13 renames these two and warns on the names that 2.11 knows.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_first_dim(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate the group's tensors: [s/t, ...] -> [s, ...]. Collective over group."""
    out = x.new_empty((x.size(0) * group.size(), *x.shape[1:]))
    _all_gather(out, x.contiguous(), group=group)
    return out


def reduce_scatter_first_dim(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over the group and keep this process's part: [s, ...] -> [s/t, ...]. Collective over group."""
    assert x.size(0) % group.size() == 0
    out = x.new_empty((x.size(0) // group.size(), *x.shape[1:]))
    _reduce_scatter(out, x.contiguous(), group=group)
    return out


def _all_reduced(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum over the group into a new tensor: autograd may still show x to others."""
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


class _CopyToRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(grad, ctx.group), None


class _ReduceFromRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_reduced(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherFromSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gather_first_dim(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter_first_dim(grad, ctx.group), None


class _ReduceScatterToSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return reduce_scatter_first_dim(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gather_first_dim(grad, ctx.group), None


def copy_to_tensor_model_parallel_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Pass x on; sum its gradient, of which each process computes a part."""
    return x if group.size() == 1 else _CopyToRegion.apply(x, group)


def reduce_from_tensor_model_parallel_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum x, of which each process computed a part; every process gets the whole gradient already."""
    return x if group.size() == 1 else _ReduceFromRegion.apply(x, group)


def gather_from_sequence_parallel_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Join the sequence, [s/t, ...] -> [s, ...], for work of which each process does a part."""
    return x if group.size() == 1 else _GatherFromSequence.apply(x, group)


def reduce_scatter_to_sequence_parallel_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum x, of which each process computed a part, and keep a piece of the sequence: [s, ...] -> [s/t, ...]."""
    return x if group.size() == 1 else _ReduceScatterToSequence.apply(x, group)


@dataclass(frozen=True)
class TensorParallelRegion:
    """The part of a layer between a column-parallel and a row-parallel product.

    Outside, activations are whole and equal on every process of the group, or pieces of the sequence
    (sequence parallel); inside, every process sees the whole sequence and does its share of heads or channels.
    """

    group: dist.ProcessGroup
    sequence_parallel: bool

    @property
    def size(self) -> int:
        return self.group.size()

    @property
    def rank(self) -> int:
        return self.group.rank()

    @property
    def outside_grad(self) -> Placement:
        """How the gradient of a replicated parameter lies that is used outside: partial if each saw a piece."""
        return Partial() if self.sequence_parallel and self.size > 1 else Replicate()

    @property
    def inside_grad(self) -> Placement:
        """The same of a replicated parameter used inside, where each does a share of the work."""
        return Partial() if self.size > 1 else Replicate()

    def enter(self, x: Tensor) -> Tensor:
        """Lead x inside: [s, b, h] or [s/t, b, h] -> [s, b, h]. Collective over the group."""
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(x, self.group)
        return copy_to_tensor_model_parallel_region(x, self.group)

    def leave(self, x: Tensor) -> Tensor:
        """Sum the shares and lead the result outside: [s, b, h] -> [s, b, h] or [s/t, b, h]. Collective."""
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(x, self.group)
        return reduce_from_tensor_model_parallel_region(x, self.group)

    def first_position(self, num_local_positions: int) -> int:
        """Give which of the positions inside row 0 outside is."""
        return self.rank * num_local_positions if self.sequence_parallel else 0
