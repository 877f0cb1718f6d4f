"""Sums in fp32 of what comes in fewer bits: gradients of micro-batches, products of parts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.kernels.cuda_library import dtype_code, launch


@torch.library.custom_op("megatron::accumulate_", mutates_args=("total",), device_types="cuda")
def accumulate_(total: Tensor, gradient: Tensor) -> None:
    """Add gradient, of any dtype, to total, fp32 and of the same shape; both contiguous (csrc/accumulate.cu)."""
    assert total.dtype == torch.float32 and total.shape == gradient.shape
    assert total.is_contiguous() and gradient.is_contiguous()
    launch("accumulate", total, gradient, dtype_code(gradient.dtype), total.numel())


@accumulate_.register_kernel("cpu")
def _(total: Tensor, gradient: Tensor) -> None:
    total.add_(gradient)


@accumulate_.register_fake
def _(total: Tensor, gradient: Tensor) -> None:
    return None


def add_product_(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add left [m, k] @ right [k, n] to total [m, n], fp32; returns it.

    The product of a GPU is never rounded to the dtype of left and right; a CPU's is, once.
    """
    if left.dtype == total.dtype:
        return total.addmm_(left, right)
    if total.device.type == "cuda":
        return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    return total.add_(left @ right)
