"""Which architecture of transformers a model is converted to, and which one a folder holds."""

from __future__ import annotations

from megatron.convert.fields import Fields
from megatron.convert.hf_architecture import Architecture
from megatron.convert.hf_gpt_bigcode import GPT_BIGCODE
from megatron.convert.hf_starcoder2 import STARCODER2
from megatron.options import ModelConfig

ARCHITECTURES = (GPT_BIGCODE, STARCODER2)


def architecture_of(model: ModelConfig) -> Architecture:
    """Choose by the kind of positions; whether it has a place for the rest is for its `map` to say."""
    return STARCODER2 if model.has_rotary_positions else GPT_BIGCODE


def architecture_named(fields: Fields) -> Architecture:
    """Give the architecture of a config.json. Raises CheckpointError if it is none that is converted."""
    for architecture in ARCHITECTURES:
        if fields.values.get("model_type") == architecture.model_type:
            return architecture
    known = " and ".join(
        f"{one.model_type} ({one.class_name.removesuffix('ForCausalLM')})" for one in ARCHITECTURES
    )
    raise fields.refusal("model_type", f"what is converted is {known}")
