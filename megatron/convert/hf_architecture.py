"""What an architecture of transformers is to a conversion, and what all of them say alike in config.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.convert.fields import Fields
from megatron.convert.mapping import MappedTensor
from megatron.options import ModelConfig

LM_HEAD = "lm_head.weight"
# transformers' names for the tanh formula; "gelu" is the exact one.
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
EXACT_GELU = "gelu"
# Fields with one value, or none, that our model can honour, and what another would ask for.
FIXED: tuple[tuple[str, object, str], ...] = (
    ("add_cross_attention", False, "there is no cross-attention here"),
    ("is_encoder_decoder", False, "there is no encoder here"),
    ("quantization_config", None, "quantised weights are not read; convert the original ones"),
    ("pruned_heads", {}, "a model with pruned heads has no place here"),
)


@dataclass(frozen=True)
class Architecture:
    """One architecture, in both directions."""

    model_type: str
    class_name: str
    word_embeddings: str  # name of their tensor
    constants: re.Pattern[str]  # names of tensors that are no weights and may be stored with them
    # Their tensors in the order of layers, as rows of ours: without rows that pad the vocabulary, the LM head only
    # where it has its own weight. ConfigError for a model that has no place there.
    map: Callable[[ModelConfig], list[MappedTensor]]
    # The fields of config.json that are the architecture's own.
    write_fields: Callable[[ModelConfig], dict[str, Any]]
    # The model of a config.json, all rows of its embedding counted as tokens. True: exact GELU is taken as the tanh
    # formula. CheckpointError naming the field that our model cannot honour.
    read_fields: Callable[[Fields, bool], ModelConfig]


def check_fixed(fields: Fields, own: tuple[tuple[str, object, str], ...]) -> None:
    """Raise CheckpointError for a field that asks for what our model does not have. own: an architecture's."""
    for name, value, what in (*FIXED, *own):
        fields.require(name, [value], what)


def check_activation(fields: Fields, name: str, accepts_exact_gelu: bool) -> None:
    """Raise CheckpointError unless an activation is GELU by the tanh formula, or may be taken as that."""
    fields.require(
        name,
        [*TANH_GELU, *([EXACT_GELU] if accepts_exact_gelu else [])],
        f"the model here has GELU by its tanh formula ({', '.join(TANH_GELU)}); --gelu-as-tanh takes "
        f"{EXACT_GELU!r} as that",
    )


def hidden_dropout(fields: Fields, residual: str, embedding: str, default: float) -> float:
    """Give the one dropout that here serves both. Raises CheckpointError where they differ."""
    dropout = fields.number(residual, default)
    if fields.number(embedding, default) != dropout:
        raise fields.refusal(
            embedding,
            f"{residual} is {dropout} and one --hidden-dropout serves both here; dropout matters to "
            f"training only: give both the value to train with",
        )
    return dropout
