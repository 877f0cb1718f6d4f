"""Which implementation of each operation a model uses: decided once, before the model is built.

An implementation says itself where it cannot run. `auto` takes the first of an ordered list that can; a name
asked for that cannot run is the user's error. Knows nothing of layers or process groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron.errors import ConfigError
from megatron.kernels.attention import AttentionFunction, explicit_attention
from megatron.kernels.attention_choice import BY_TORCH, select_attention
from megatron.kernels.choice import Choice, Situation
from megatron.kernels.cross_entropy import CrossEntropy
from megatron.kernels.dropout import Dropout
from megatron.kernels.fixed_order import keeping_order
from megatron.kernels.linear_product import Product
from megatron.kernels.operation_choice import choose_operations, requested
from megatron.kernels.product_choice import choose_product


@dataclass(frozen=True)
class Kernels:
    """The operations of a transformer layer and of the loss, and why each is the one it is."""

    attention: AttentionFunction
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    bias_gelu: Callable[[Tensor, Tensor | None], Tensor]
    bias_dropout_residual: Callable[[Tensor, Tensor | None, Tensor, Dropout | None], Tensor]
    # the sum of the one before, and its layer norm
    bias_dropout_residual_layer_norm: Callable[
        [Tensor, Tensor | None, Tensor, Dropout | None, Tensor, Tensor, float],
        tuple[Tensor, Tensor],
    ]
    cross_entropy: CrossEntropy
    product: Product  # with the layers' weights
    output_product: Product  # with the LM head's
    stores_attention_probabilities: bool  # what selective recomputation is there to free
    choices: tuple[Choice, ...]


def choose_kernels(
    attention_backend: str, situation: Situation, kernels: Sequence[str] = ("auto",)
) -> Kernels:
    """Choose every operation for a situation. ConfigError if an explicit choice cannot run."""
    attention, reason = select_attention(attention_backend, situation)
    wanted = requested(kernels)
    product, output_product, product_choice = choose_product(wanted["product"][0], situation)
    chosen = choose_operations(wanted, situation)
    functions = {name: implementation for name, (implementation, _) in chosen.items()}
    softmax, attend = functions.pop("softmax"), attention.function
    if situation.keeps_order and situation.device_type == "cuda":
        reason += "; gradients in a fixed order"
        attend = keeping_order(attend) if attention in BY_TORCH else attend
    if attention.name == "explicit":
        attend = functools.partial(explicit_attention, softmax=softmax)
    elif wanted["softmax"][1]:
        raise ConfigError(
            f"--kernels softmax={wanted['softmax'][0]}: the softmax is --attention-backend explicit's, and this is "
            f"{attention.name}; leave it out"
        )
    else:
        del chosen["softmax"]
    return Kernels(
        attention=attend,
        **functions,
        product=product,
        output_product=output_product,
        stores_attention_probabilities=attention.name == "explicit",
        choices=(
            Choice("attention", attention.name, reason),
            product_choice,
            *(choice for _, choice in chosen.values()),
        ),
    )
