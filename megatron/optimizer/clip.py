"""The global gradient norm over every axis, read from each parameter's own placements."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from megatron.kernels import cuda_library
from megatron.kernels.square_sum import fused_square_sum, square_sum
from megatron.parallel.parameter import local_part


def num_replicas(tensor: DTensor) -> int:
    """Count the processes of the tensor's mesh that hold the same shard."""
    sizes = tensor.device_mesh.shape
    replicas = 1
    for size, placement in zip(sizes, tensor.placements, strict=True):
        if isinstance(placement, Replicate):
            replicas *= size
    return replicas


@torch.no_grad()
def gradient_square_sum(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Sum the squares of this process's gradients, each divided by its number of replicas: fp64 [].

    Summed over the whole world it is the squared norm of the gradient. Parameters without gradients count nothing.
    No collective, and nothing waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts, weights = [], []
    shares: dict[tuple[Placement, ...], float] = {}  # all lie on one mesh
    for gradient in gradients:
        assert isinstance(gradient, DTensor)
        parts.append(local_part(gradient))
        if gradient.placements not in shares:
            shares[gradient.placements] = 1.0 / num_replicas(gradient)
        weights.append(shares[gradient.placements])
    is_fused = device.type == "cuda" and cuda_library.obstacle() is None
    return (fused_square_sum if is_fused else square_sum)(parts, weights, device)


def clip_factor(norm: Tensor, clip_grad: float) -> Tensor:
    """Give what gradients are multiplied by so that their norm is at most clip_grad (0: never clip): [] -> []."""
    if clip_grad <= 0.0:
        return torch.ones_like(norm)
    # Megatron's rule: 1e-6 keeps the quotient finite, and the result is only used below 1.
    return (torch.full_like(norm, clip_grad) / (norm + 1.0e-6)).clamp(max=1.0)
