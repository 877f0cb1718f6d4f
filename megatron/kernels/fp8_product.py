"""Products with weights in 8-bit floating point (arXiv 2209.05433), by torch's scaled matrix product.

y = x W^T and dx = dy W multiply 8-bit numbers with sums in fp32: x and W as e4m3, gradients as e5m2, which trades
precision for range. Each tensor is scaled, as a whole and anew each time, so that its largest magnitude is the format's.
dW = dy^T x is computed in the dtype of the tensors: it is summed over a whole batch, where errors would gather. Weights,
activations and gradients keep their dtypes outside; nothing is remembered between calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.linear_product import GradientSum, weight_gradient

FORWARD, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give x as 8-bit numbers and the fp32 [] that they are to be multiplied with."""
    largest = x.abs().amax().float()
    # of zeros, any scale will do; of what is not finite, the product is not either
    scale = torch.where(largest > 0, largest / torch.finfo(dtype).max, 1.0)
    return (x.float() / scale).to(dtype), scale


@functools.cache
def _compiled_quantize() -> Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]:
    return torch.compile(quantize, fullgraph=True)


def _quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (_compiled_quantize() if x.is_cuda else quantize)(x, dtype)


def _multiply(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, *, fast: bool
) -> Tensor:
    """Compute a b^T: a [m, k], b [n, k] -> [m, n]."""
    return torch._scaled_mm(
        a, b.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=dtype, use_fast_accum=fast
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradient_sum: GradientSum | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradient_sum = gradient_sum
        a, a_scale = _quantize(x.flatten(0, -2), FORWARD)
        b, b_scale = _quantize(weight, FORWARD)
        # fast: partial sums of fewer bits, which a forward pass bears and a gradient does not
        out = _multiply(a, a_scale, b, b_scale, x.dtype, fast=x.is_cuda)
        # as F.linear shapes its result: no view as autograd counts them, so that it may be overwritten
        return torch.ops.aten._unsafe_view(out, (*x.shape[:-1], weight.size(0)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            a, a_scale = _quantize(rows, GRADIENT)
            b, b_scale = _quantize(weight, FORWARD)
            grad_x = _multiply(a, a_scale, b.t().contiguous(), b_scale, x.dtype, fast=False)
            grad_x = grad_x.view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(rows, x.flatten(0, -2), ctx.gradient_sum)
        return grad_x, grad_weight, None


def fp8_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gradient_sum: GradientSum | None = None,
) -> Tensor:
    """Compute x W^T + bias as `linear_product` does: x [..., in], weight [out, in], bias [out] -> [..., out].

    in and out must be multiples of 16. Takes bf16 and fp16 on a GPU (compute capability 8.9, 9.0 and later).
    """
    out = _Product.apply(x, weight, gradient_sum)
    return out if bias is None else out + bias
