"""Products in 8 bits as they can be counted on the meta device: what `kernels.fp8_product` keeps, moves and does.

There torch compiles the search for the largest magnitude and the cast, which read their input once each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.fp8_product import FORWARD, GRADIENT
from megatron.kernels.linear_product import GradientSum, weight_gradient


def _quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.to(dtype), x.amax().float()


def _multiply(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """Compute a b^T: a [m, k], b [n, k] -> [m, n]."""
    return torch._scaled_mm(a[0], b[0].t(), scale_a=a[1], scale_b=b[1], out_dtype=dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradient_sum: GradientSum | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradient_sum = gradient_sum
        rows = x.flatten(0, -2)
        out = _multiply(_quantize(rows, FORWARD), _quantize(weight, FORWARD), x.dtype)
        return torch.ops.aten._unsafe_view(out, (*x.shape[:-1], weight.size(0)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        b, scale = _quantize(weight, FORWARD)
        grad_x = _multiply(_quantize(rows, GRADIENT), (b.t().contiguous(), scale), x.dtype)
        grad_weight = weight_gradient(rows, x.flatten(0, -2), ctx.gradient_sum)
        return grad_x.view(x.shape), grad_weight, None


def eight_bit_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gradient_sum: GradientSum | None = None,
) -> Tensor:
    """Do what `fp8_product` does, without numbers."""
    out: Tensor = _Product.apply(x, weight, gradient_sum)
    return out if bias is None else out + bias
