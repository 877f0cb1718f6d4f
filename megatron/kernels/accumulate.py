"""Products of tensors of few bits whose sum is kept in fp32: gradients of micro-batches, of parts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def product_in_fp32(left: Tensor, right: Tensor) -> Tensor:
    """Compute left [m, k] @ right [k, n] in fp32, of any dtype of floating point; nothing is rounded to it."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # a CPU's own product rounds, and in fp16 is slower


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add left [m, k] @ right [k, n] to total [m, n], fp32, as `product_in_fp32` computes it; returns total."""
    if left.dtype == torch.float32:
        return total.addmm_(left, right)
    if left.is_cuda:
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    return total.addmm_(left.float(), right.float())
