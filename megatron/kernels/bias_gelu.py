"""Bias + GELU in its tanh form, the activation of GPT-2 and StarCoder.

`fused_bias_gelu` is one kernel forward and one backward (csrc/bias_gelu.cu), which computes x + bias again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from megatron.kernels.cuda_library import dtype_code, launch
from megatron.kernels.fused import absent, check_sizes, column_scratch, dense, layout, widen

_SCALE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute gelu(x + bias), x [..., f], bias [f]. Overwrites x: a product that nobody else reads."""
    if bias is not None:
        x = x.add_(bias)
    return F.gelu(x, approximate="tanh")


def fused_bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute what `bias_gelu` does; both of one dtype, x is left alone. Backward keeps x."""
    return _bias_gelu(x, bias)


def _add(x: Tensor, bias: Tensor | None) -> Tensor:
    return widen(x) if bias is None else widen(x) + bias


def _sigmoid(y: Tensor) -> Tensor:
    """Give the factor of y in gelu(y): (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    return torch.sigmoid(2 * _SCALE * (y + _CUBIC * y**3))


@library.custom_op("megatron::bias_gelu", mutates_args=(), device_types="cpu")
def _bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    y = _add(x, bias)
    return (y * _sigmoid(y)).to(x.dtype)


@_bias_gelu.register_kernel("cuda")
def _bias_gelu_cuda(x: Tensor, bias: Tensor | None) -> Tensor:
    check_sizes(x, bias)
    y = _bias_gelu_like(x, bias)
    launch("bias_gelu", x.contiguous(), dense(bias), y, *layout(x), dtype_code(x.dtype))
    return y


@_bias_gelu.register_fake
def _bias_gelu_like(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@library.custom_op("megatron::bias_gelu_backward", mutates_args=(), device_types="cpu")
def _bias_gelu_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Give dx, and d_bias where there is a bias, else an absent one."""
    y = _add(x, bias)
    s = _sigmoid(y)
    dx = s + y * s * (1 - s) * (2 * _SCALE * (1 + 3 * _CUBIC * y.square()))
    dx = dx.mul_(dy)
    d_bias = absent(x) if bias is None else dx.flatten(0, -2).sum(dim=0).to(x.dtype)
    return dx.to(x.dtype), d_bias


@_bias_gelu_backward.register_kernel("cuda")
def _bias_gelu_backward_cuda(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    dx, d_bias = _bias_gelu_backward_like(dy, x, bias)
    launch(
        "bias_gelu_backward",
        dy.contiguous(),
        x.contiguous(),
        dense(bias),
        dx,
        None if bias is None else d_bias,
        *column_scratch(x, 0 if bias is None else 1),
        *layout(x),
        dtype_code(x.dtype),
    )
    return dx, d_bias


@_bias_gelu_backward.register_fake
def _bias_gelu_backward_like(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), absent(x) if bias is None else x.new_empty(bias.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, d_bias = _bias_gelu_backward(dy, x, bias)
    return dx, None if bias is None else d_bias


_bias_gelu.register_autograd(_differentiate, setup_context=_keep)
