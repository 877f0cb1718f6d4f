"""The elementwise operations of a layer as `torch.compile` fuses them: the references, written to be traced.

Nothing is compiled before an operation's first call, and again for each new shape. Nothing is overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.kernels.dropout import Dropout, drop_mask, keep_scale
from megatron.kernels.layer_norm import layer_norm

Function = TypeVar("Function", bound=Callable[..., Any])


def _compiled(function: Function) -> Function:
    """Compile at the first call: importing this module costs nothing."""

    @functools.cache
    def compile_once() -> Any:
        # Rounded where the reference stores: a norm computed again from the sum that was kept has the same bits.
        options: dict[str, Any] = {"emulate_precision_casts": True}
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return compile_once()(*args)

    return call  # type: ignore[return-value]


def _drop(x: Tensor, probability: float, row_keys: Tensor | None) -> Tensor:
    if row_keys is None:
        return x
    dropped = drop_mask(row_keys, x.size(-1), probability)
    return (x * keep_scale(probability)).masked_fill(dropped, 0.0)


@_compiled
def _sum(
    x: Tensor, bias: Tensor | None, residual: Tensor, probability: float, keys: Tensor | None
) -> Tensor:
    return residual + _drop(x if bias is None else x + bias, probability, keys)


@_compiled
def _sum_and_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    probability: float,
    keys: Tensor | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    total = residual + _drop(x if bias is None else x + bias, probability, keys)
    return total, layer_norm(total, weight, norm_bias, epsilon)


compiled_layer_norm = _compiled(layer_norm)


@_compiled
def compiled_bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute gelu(x + bias), x [..., f], bias [f]."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def compiled_bias_dropout_residual(
    x: Tensor, bias: Tensor | None, residual: Tensor, dropout: Dropout | None
) -> Tensor:
    """Compute residual + dropout(x + bias), x and residual [s, b, h], bias [h]."""
    return _sum(x, bias, residual, *_parts(dropout))


def compiled_bias_dropout_residual_layer_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: Dropout | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Give the sum of `compiled_bias_dropout_residual` and its layer norm."""
    if x.device.type == "cpu" and torch.__version__ < "2.13":  # compared as versions, not as texts
        # What those compile for a CPU takes the norm of the sum before it is rounded, whatever they are told.
        total = _sum(x, bias, residual, *_parts(dropout))
        return total, compiled_layer_norm(total, weight, norm_bias, epsilon)
    return _sum_and_norm(x, bias, residual, *_parts(dropout), weight, norm_bias, epsilon)


def _parts(dropout: Dropout | None) -> tuple[float, Tensor | None]:
    return (0.0, None) if dropout is None else (dropout.probability, dropout.row_keys)
