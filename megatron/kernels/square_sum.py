"""The weighted sum of the squares of many tensors, for the norm of a gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron.kernels import cuda_library
from megatron.kernels.multi_tensor import Table

_NUM_PARTIAL_SUMS = 1024  # kBlocks of csrc/square_sum.cu


def square_sum(tensors: Sequence[Tensor], weights: Sequence[float], device: torch.device) -> Tensor:
    """Sum weight x the squares of its elements over all tensors: fp64 [] on their device."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    held = [(t, weight) for t, weight in zip(tensors, weights, strict=True) if t.numel() > 0]
    if not held:
        return total
    norms = torch._foreach_norm([t for t, _ in held], 2, dtype=torch.float32)
    factors = torch.tensor([weight for _, weight in held], dtype=torch.float64)
    if device.type == "cuda":
        factors = factors.pin_memory().to(device, non_blocking=True)
    return total.add_(torch.stack(norms).double().square_().mul_(factors).sum())


def fused_square_sum(
    tensors: Sequence[Tensor], weights: Sequence[float], device: torch.device
) -> Tensor:
    """Do what `square_sum` does, on a GPU in two launches for each dtype (csrc/square_sum.cu)."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    by_dtype: dict[torch.dtype, list[tuple[Tensor, float]]] = defaultdict(list)
    for tensor, weight in zip(tensors, weights, strict=True):
        by_dtype[tensor.dtype].append((tensor, weight))
    for dtype, held in by_dtype.items():
        table = Table.upload([[t for t, _ in held]], [weight for _, weight in held])
        cuda_library.launch(
            "square_sum",
            *table.arguments,
            cuda_library.dtype_code(dtype),
            total.new_empty(_NUM_PARTIAL_SUMS),
            total,
        )
    return total
