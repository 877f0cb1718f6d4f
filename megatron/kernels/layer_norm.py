"""LayerNorm over the last dim; statistics in fp32 whatever the dtype of the input.

`layer_norm` is torch's. `fused_layer_norm` is one kernel forward and one backward (csrc/layer_norm.cu), with weight
gradients that are the same bits at every run.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, library

from megatron.kernels.cuda_library import dtype_code, launch
from megatron.kernels.fused import (
    absent,
    check_sizes,
    column_scratch,
    dense,
    drop,
    dropout_arguments,
    layout,
    statistic_like,
    widen,
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise x [..., h] with weight and bias [h]."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def fused_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Compute what `layer_norm` does; all of one dtype. Backward keeps x and two numbers for each row."""
    return _layer_norm(x, weight, bias, epsilon)[0]


def normalize(
    wide: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the norm of wide [..., h] in its precision, and mean and rstd [...]."""
    mean = wide.mean(dim=-1)
    centred = wide - mean.unsqueeze(-1)
    rstd = centred.square().mean(dim=-1).add_(epsilon).rsqrt_()
    return centred.mul_(rstd.unsqueeze(-1)).mul_(weight).add_(bias), mean, rstd


@library.custom_op("megatron::layer_norm", mutates_args=(), device_types="cpu")
def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the norm, and mean and rstd of each row."""
    normed, mean, rstd = normalize(widen(x), weight, bias, epsilon)
    return normed.to(x.dtype), mean, rstd


@_layer_norm.register_kernel("cuda")
def _layer_norm_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    check_sizes(x, weight, bias)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    results = _layer_norm_like(x)
    launch("layer_norm", x, weight, bias, *results, epsilon, *layout(x), dtype_code(x.dtype))
    return results


@_layer_norm.register_fake
def _layer_norm_like(x: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), statistic_like(x), statistic_like(x)


@library.custom_op("megatron::layer_norm_backward", mutates_args=(), device_types="cpu")
def layer_norm_backward(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    row_keys: Tensor | None,
    *,
    probability: float,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give the gradients of normed = layer_norm(total), total = residual + dropout(x + bias).

    d_total: what reaches total otherwise. Gives d_residual, which is that of total; dx with dropout, else an absent
    one: it is d_residual; d_weight, d_norm_bias; d_bias with has_bias, else an absent one.
    """
    normal = (widen(total) - mean.unsqueeze(-1)).mul_(rstd.unsqueeze(-1))
    d_wide = widen(d_normed)
    g = d_wide * weight
    d = g - g.mean(dim=-1, keepdim=True) - normal * (g * normal).mean(dim=-1, keepdim=True)
    d = d.mul_(rstd.unsqueeze(-1))
    if d_total is not None:
        d = d.add_(d_total)
    dx = drop(d, row_keys, probability)
    sums = [
        x.flatten(0, -2).sum(dim=0).to(total.dtype)
        for x in (normal.mul_(d_wide), d_wide, *([dx] if has_bias else []))
    ]
    return (
        d.to(total.dtype),
        absent(total) if row_keys is None else dx.to(total.dtype),
        sums[0],
        sums[1],
        sums[2] if has_bias else absent(total),
    )


@layer_norm_backward.register_kernel("cuda")
def _layer_norm_backward_cuda(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    row_keys: Tensor | None,
    *,
    probability: float,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    total, weight = total.contiguous(), weight.contiguous()
    results = _gradients_like(total, row_keys, has_bias)
    d_residual, dx, d_weight, d_norm_bias, d_bias = results
    launch(
        "layer_norm_backward",
        dense(d_total),
        d_normed.contiguous(),
        total,
        mean,
        rstd,
        weight,
        *dropout_arguments(row_keys, probability),
        d_residual,
        None if row_keys is None else dx,
        d_weight,
        d_norm_bias,
        d_bias if has_bias else None,
        *column_scratch(total, 3 if has_bias else 2),
        *layout(total),
        dtype_code(total.dtype),
    )
    return results


@layer_norm_backward.register_fake
def _(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    row_keys: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients_like(total, row_keys, options["has_bias"])


def _gradients_like(
    total: Tensor, row_keys: Tensor | None, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make what `layer_norm_backward` gives: two like total [..., h], three [h]."""
    columns = total.shape[-1:]
    return (
        total.new_empty(total.shape),
        absent(total) if row_keys is None else total.new_empty(total.shape),
        total.new_empty(columns),
        total.new_empty(columns),
        total.new_empty(columns) if has_bias else absent(total),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_normed: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if d_normed is None:
        return None, None, None, None
    dx, _, d_weight, d_bias, _ = layer_norm_backward(
        d_normed, None, *ctx.saved_tensors, None, probability=0.0, has_bias=False
    )
    return dx, d_weight, d_bias, None


_layer_norm.register_autograd(_differentiate, setup_context=_keep)
