"""The product with a layer's weight, whose backward can add the weight's gradient to a sum that somebody keeps.

A gradient that autograd hands out is rounded to the dtype of the weight, and whoever adds it to others reads it again.
Where a sum in fp32 is known, dW = dy^T x goes there from the product's own registers: of each weight and micro-batch 8
bytes are read and written instead of 12, and nothing is rounded. Knows nothing of who keeps the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class GradientSum(Protocol):
    """Where gradients of a weight [out, in] add up."""

    def add(self, grad: Tensor, x: Tensor) -> bool:
        """Add grad^T x, of grad [r, out] and x [r, in]; False if it is to go the way of autograd."""
        ...


# x [..., in], weight [out, in], bias [out] or None, sum of the weight's gradients or None -> [..., out]
Product = Callable[[Tensor, Tensor, Tensor | None, GradientSum | None], Tensor]
# x [r, in] and weight [out, in], lying in either order, bias [out] or None -> x W^T + bias [r, out]
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def weight_gradient(grad: Tensor, x: Tensor, gradient_sum: GradientSum | None) -> Tensor | None:
    """Give grad^T x, of grad [r, out] and x [r, in], or None where a sum has taken it."""
    return None if _is_taken(grad, x, gradient_sum) else grad.t() @ x


def _is_taken(grad: Tensor, x: Tensor, gradient_sum: GradientSum | None) -> bool:
    return gradient_sum is not None and gradient_sum.add(grad, x)


class ProductBy(torch.autograd.Function):
    """x W^T + bias, and the products of its backward pass, by a function that multiplies matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_sum: GradientSum | None,
        multiply: Multiply,
    ) -> Tensor:
        rows = x.flatten(0, -2)  # [r, in]
        ctx.save_for_backward(rows, weight)
        ctx.gradient_sum, ctx.multiply = gradient_sum, multiply
        # not a view, on which nobody might change anything in place or hang a hook
        out = multiply(rows, weight, bias)
        return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], weight.size(0)])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        grad_rows = grad.flatten(0, -2)  # [r, out]
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.multiply(grad_rows, weight.t(), None)  # [r, in]
            grad_x = grad_x.view(*grad.shape[:-1], weight.size(1))
        if ctx.needs_input_grad[1] and not _is_taken(grad_rows, rows, ctx.gradient_sum):
            grad_weight = ctx.multiply(grad_rows.t(), rows.t(), None)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_rows.sum(0)
        return grad_x, grad_weight, grad_bias, None, None


def linear_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gradient_sum: GradientSum | None = None,
) -> Tensor:
    """Compute x W^T + bias: x [..., in], weight [out, in], bias [out] -> [..., out].

    gradient_sum: takes the weight's gradient in a backward pass that runs once for all gradients; autograd, which could
    ask for some of them at a time, does not tell.
    """
    if gradient_sum is None:
        return F.linear(x, weight, bias)
    product: Tensor = ProductBy.apply(x, weight, bias, gradient_sum, F.linear)
    return product
