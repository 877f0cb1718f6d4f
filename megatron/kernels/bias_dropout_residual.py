"""What closes both halves of a transformer layer: residual + dropout(x + bias), and the norm that may follow.

The fused forms are one kernel forward and one backward each (csrc/bias_dropout_residual.cu, csrc/layer_norm.cu).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, library

from megatron.kernels.cuda_library import dtype_code, launch
from megatron.kernels.dropout import Dropout
from megatron.kernels.fused import (
    absent,
    check_sizes,
    column_scratch,
    dense,
    drop,
    dropout_arguments,
    dropout_parts,
    layout,
    statistic_like,
    widen,
)
from megatron.kernels.layer_norm import layer_norm, layer_norm_backward, normalize


def bias_dropout_residual(
    x: Tensor, bias: Tensor | None, residual: Tensor, dropout: Dropout | None
) -> Tensor:
    """Compute residual + dropout(x + bias), x and residual [s, b, h], bias [h].

    Overwrites x: a product that nobody else reads. No dropout and no work for it where it is None.
    """
    if bias is not None:
        x = x.add_(bias)
    if dropout is not None:
        return dropout(x).add_(residual)
    return x.add_(residual)


def bias_dropout_residual_layer_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: Dropout | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Give the sum of `bias_dropout_residual` and its layer norm with weight and norm_bias [h]. Overwrites x."""
    total = bias_dropout_residual(x, bias, residual, dropout)
    return total, layer_norm(total, weight, norm_bias, epsilon)


def fused_bias_dropout_residual(
    x: Tensor, bias: Tensor | None, residual: Tensor, dropout: Dropout | None
) -> Tensor:
    """Compute what `bias_dropout_residual` does; all of one dtype, x is left alone. Backward keeps no activation."""
    return _sum(x, bias, residual, *dropout_parts(dropout))


def fused_bias_dropout_residual_layer_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: Dropout | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Compute what `bias_dropout_residual_layer_norm` does; x is left alone. Backward keeps the sum."""
    row_keys, probability = dropout_parts(dropout)
    total, normed, _, _ = _sum_and_norm(
        x, bias, residual, row_keys, weight, norm_bias, probability=probability, epsilon=epsilon
    )
    return total, normed


@library.custom_op("megatron::bias_dropout_residual", mutates_args=(), device_types="cpu")
def _sum(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    row_keys: Tensor | None,
    probability: float,
) -> Tensor:
    wide = widen(x) if bias is None else widen(x) + bias
    return drop(wide, row_keys, probability).add(residual.contiguous()).to(x.dtype)


@_sum.register_kernel("cuda")
def _sum_cuda(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    row_keys: Tensor | None,
    probability: float,
) -> Tensor:
    check_sizes(x, bias, residual=residual, row_keys=row_keys)
    total = _sum_like(x)
    launch(
        "bias_dropout_residual",
        x.contiguous(),
        dense(bias),
        residual.contiguous(),
        *dropout_arguments(row_keys, probability),
        total,
        *layout(x),
        dtype_code(x.dtype),
    )
    return total


@_sum.register_fake
def _sum_like(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@library.custom_op("megatron::bias_dropout_residual_backward", mutates_args=(), device_types="cpu")
def _sum_backward(
    dy: Tensor, row_keys: Tensor | None, probability: float, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Give dx with dropout, else an absent one: it is dy; and d_bias with has_bias, else an absent one."""
    dx = drop(widen(dy), row_keys, probability)
    d_bias = dx.flatten(0, -2).sum(dim=0).to(dy.dtype) if has_bias else absent(dy)
    return absent(dy) if row_keys is None else dx.to(dy.dtype), d_bias


@_sum_backward.register_kernel("cuda")
def _sum_backward_cuda(
    dy: Tensor, row_keys: Tensor | None, probability: float, has_bias: bool
) -> tuple[Tensor, Tensor]:
    dx, d_bias = _sum_backward_like(dy, row_keys, probability, has_bias)
    launch(
        "bias_dropout_residual_backward",
        dy.contiguous(),
        *dropout_arguments(row_keys, probability),
        None if row_keys is None else dx,
        d_bias if has_bias else None,
        *column_scratch(dy, 1 if has_bias else 0),
        *layout(dy),
        dtype_code(dy.dtype),
    )
    return dx, d_bias


@_sum_backward.register_fake
def _sum_backward_like(
    dy: Tensor, row_keys: Tensor | None, probability: float, has_bias: bool
) -> tuple[Tensor, Tensor]:
    dx = absent(dy) if row_keys is None else dy.new_empty(dy.shape)
    return dx, dy.new_empty(dy.shape[-1:]) if has_bias else absent(dy)


def _gradients_of_sum(
    dy: Tensor, row_keys: Tensor | None, probability: float, has_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Give the gradients of x, bias and residual, as one tensor where they are equal."""
    if row_keys is None and not has_bias:
        return dy, None, dy
    dx, d_bias = _sum_backward(dy, row_keys, probability, has_bias)
    return dy if row_keys is None else dx, d_bias if has_bias else None, dy


def _keep_of_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, _, row_keys, probability = inputs
    ctx.save_for_backward(row_keys)
    ctx.probability, ctx.has_bias = probability, bias is not None


def _differentiate_sum(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (row_keys,) = ctx.saved_tensors
    return *_gradients_of_sum(dy, row_keys, ctx.probability, ctx.has_bias), None, None


_sum.register_autograd(_differentiate_sum, setup_context=_keep_of_sum)


@library.custom_op(
    "megatron::bias_dropout_residual_layer_norm", mutates_args=(), device_types="cpu"
)
def _sum_and_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    row_keys: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    *,
    probability: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give the sum, its norm, and mean and rstd of each row."""
    total = _sum(x, bias, residual, row_keys, probability)
    normed, mean, rstd = normalize(widen(total), weight, norm_bias, epsilon)
    return total, normed.to(x.dtype), mean, rstd


@_sum_and_norm.register_kernel("cuda")
def _sum_and_norm_cuda(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    row_keys: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    *,
    probability: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_sizes(x, bias, weight, norm_bias, residual=residual, row_keys=row_keys)
    results = _sum_and_norm_like(x)
    launch(
        "bias_dropout_residual_layer_norm",
        x.contiguous(),
        dense(bias),
        residual.contiguous(),
        *dropout_arguments(row_keys, probability),
        weight.contiguous(),
        norm_bias.contiguous(),
        *results,
        epsilon,
        *layout(x),
        dtype_code(x.dtype),
    )
    return results


@_sum_and_norm.register_fake
def _sum_and_norm_like(
    x: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), statistic_like(x), statistic_like(x)


def _keep_of_sum_and_norm(
    ctx: Any,
    inputs: tuple[Any, ...],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, ...],
) -> None:
    _, bias, _, row_keys, weight, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(total, mean, rstd, weight, row_keys)
    ctx.probability = keyword_only_inputs["probability"]
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)


def _differentiate_sum_and_norm(
    ctx: Any, d_total: Tensor | None, d_normed: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    *kept, row_keys = ctx.saved_tensors
    if d_normed is None:
        if d_total is None:
            return (None,) * 6
        gradients = _gradients_of_sum(d_total, row_keys, ctx.probability, ctx.has_bias)
        return *gradients, None, None, None
    d_residual, dx, d_weight, d_norm_bias, d_bias = layer_norm_backward(
        d_normed,
        d_total,
        *kept,
        row_keys,
        probability=ctx.probability,
        has_bias=ctx.has_bias,
    )
    return (
        d_residual if row_keys is None else dx,
        d_bias if ctx.has_bias else None,
        d_residual,
        None,
        d_weight,
        d_norm_bias,
    )


_sum_and_norm.register_autograd(_differentiate_sum_and_norm, setup_context=_keep_of_sum_and_norm)
