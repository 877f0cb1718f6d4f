"""What closes both halves of a transformer layer: residual + dropout(x + bias)."""

from __future__ import annotations

from torch import Tensor

from megatron.kernels.dropout import Dropout
from megatron.kernels.layer_norm import layer_norm


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
