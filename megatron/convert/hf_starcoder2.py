"""Starcoder2 of transformers: rotary positions, grouped heads, a sliding window (arXiv 2402.19173)."""

from __future__ import annotations

import re
from typing import Any

from megatron.convert.fields import Fields
from megatron.convert.hf_architecture import (
    LM_HEAD,
    Architecture,
    check_activation,
    check_fixed,
    hidden_dropout,
)
from megatron.convert.mapping import MappedTensor, Rows, linear, norm, whole
from megatron.options import ModelConfig

WORD_EMBEDDINGS = "model.embed_tokens.weight"
FIXED: tuple[tuple[str, object, str], ...] = (
    ("norm_type", "layer_norm", "norms are LayerNorm here"),
    ("mlp_type", "default", "the MLP has no gate here"),
)
ONE = (1, 1.0)  # a factor that changes nothing
DEFAULT_BASE = 10000.0  # of transformers, where config.json says nothing


def _write_fields(model: ModelConfig) -> dict[str, Any]:
    own_width = model.num_attention_heads * model.head_dim != model.hidden_size
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        **({"head_dim": model.head_dim} if own_width else {}),
        "max_position_embeddings": model.max_position_embeddings,
        # transformers 5 makes its rope_parameters of this; version 4 reads only this.
        "rope_theta": model.rotary_base,
        "sliding_window": model.window_size,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": model.layernorm_epsilon,
        "use_bias": not model.disable_bias_linear,
        "residual_dropout": model.hidden_dropout,
        "embedding_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
    }


def _read_fields(fields: Fields, accepts_exact_gelu: bool) -> ModelConfig:
    check_fixed(fields, FIXED)
    check_activation(fields, "hidden_act", accepts_exact_gelu)
    heads, hidden = fields.whole("num_attention_heads"), fields.whole("hidden_size")
    width = fields.whole("head_dim", max(1, hidden // heads))
    has_window = fields.values.get("sliding_window") is not None
    _check_layer_types(fields, has_window)
    fields.require("logit_scale", ONE, "logits are not scaled here")
    rows = fields.whole("vocab_size")
    return ModelConfig(
        num_layers=fields.whole("num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=fields.whole("intermediate_size"),
        num_attention_heads=heads,
        kv_channels=None if width * heads == hidden else width,
        num_query_groups=fields.whole("num_key_value_heads", 2),
        position_embedding_type="rope",
        max_position_embeddings=fields.whole("max_position_embeddings"),
        rotary_base=_rotary_base(fields),
        window_size=fields.whole("sliding_window") if has_window else None,
        layernorm_epsilon=fields.number("norm_epsilon", 1e-5),
        hidden_dropout=hidden_dropout(fields, "residual_dropout", "embedding_dropout", 0.0),
        attention_dropout=fields.number("attention_dropout", 0.0),
        init_method_std=fields.number("initializer_range", 0.018042),
        untie_embeddings_and_output_weights=not fields.flag("tie_word_embeddings", True),
        disable_bias_linear=not fields.flag("use_bias", True),
        vocab_size=rows,
        padded_vocab_size=rows,
    )


def _rotary_base(fields: Fields) -> float:
    """Find the base where transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) keeps it, unscaled."""
    base = fields.number("rope_theta", DEFAULT_BASE)
    _check_all_rotated(fields)
    for name in ("rope_scaling", "rope_parameters"):
        values = fields.values.get(name)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise fields.refusal(name, "it has to be an object")
        rope = Fields(values, f"{fields.where}: {name}")
        for kind in ("rope_type", "type"):
            rope.require(kind, ["default"], "rotary positions are not scaled here")
        _check_all_rotated(rope)
        base = rope.number("rope_theta", base)
    return base


def _check_all_rotated(fields: Fields) -> None:
    fields.require("partial_rotary_factor", ONE, "positions rotate the whole of each head here")


def _check_layer_types(fields: Fields, has_window: bool) -> None:
    """Raise CheckpointError unless all layers are of the kind that sliding_window makes them."""
    kinds = fields.values.get("layer_types")
    kind = "sliding_attention" if has_window else "full_attention"
    if kinds is None:
        return
    if not isinstance(kinds, list) or any(layer != kind for layer in kinds):
        window = fields.values.get("sliding_window")
        raise fields.refusal(
            "layer_types",
            f"all layers are alike here, and with a sliding_window of {window} they are {kind}",
        )


def _map(config: ModelConfig) -> list[MappedTensor]:
    assert config.has_rotary_positions
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [whole(WORD_EMBEDDINGS, "embedding.word_embeddings.weight", vocab, hidden)]
    for number in range(config.num_layers):
        tensors += _layer(config, f"model.layers.{number}", f"layers.{number}")
    tensors += norm("model.norm", "final_layernorm", hidden)
    if config.untie_embeddings_and_output_weights:
        tensors.append(whole(LM_HEAD, "output_layer.weight", vocab, hidden))
    return tensors


def _layer(config: ModelConfig, theirs: str, ours: str) -> list[MappedTensor]:
    hidden, ffn = config.hidden_size, config.ffn_size
    heads_size = config.num_attention_heads * config.head_dim
    attention, own_attention = f"{theirs}.self_attn", f"{ours}.self_attention"
    has_bias = not config.disable_bias_linear

    def same(name: str, own: str, rows: int, columns: int) -> list[MappedTensor]:
        return linear(name, own, rows, columns, has_bias=has_bias)

    return [
        *norm(f"{theirs}.input_layernorm", f"{ours}.input_layernorm", hidden),
        *same(f"{attention}.q_proj", f"{own_attention}.query", heads_size, hidden),
        *_half_of_key_value(config, f"{attention}.k_proj", f"{own_attention}.key_value", 0),
        *_half_of_key_value(config, f"{attention}.v_proj", f"{own_attention}.key_value", 1),
        *same(f"{attention}.o_proj", f"{own_attention}.dense", hidden, heads_size),
        *norm(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_layernorm", hidden),
        *same(f"{theirs}.mlp.c_fc", f"{ours}.mlp.dense_h_to_4h", ffn, hidden),
        *same(f"{theirs}.mlp.c_proj", f"{ours}.mlp.dense_4h_to_h", hidden, ffn),
    ]


def _half_of_key_value(
    config: ModelConfig, theirs: str, ours: str, half: int
) -> list[MappedTensor]:
    """Take the keys (half 0) or values (1) of all groups from key_value [g (k, v) d, h]."""
    groups, d = config.query_groups, config.head_dim

    def part(kind: str, *columns: int) -> MappedTensor:
        starts = [(2 * group + half) * d for group in range(groups)]
        rows = tuple(Rows(f"{ours}.{kind}", start, start + d) for start in starts)
        return MappedTensor(f"{theirs}.{kind}", (groups * d, *columns), rows)

    weight = part("weight", config.hidden_size)
    return [weight] if config.disable_bias_linear else [weight, part("bias")]


STARCODER2 = Architecture(
    model_type="starcoder2",
    class_name="Starcoder2ForCausalLM",
    word_embeddings=WORD_EMBEDDINGS,
    # Of frequencies, which transformers computes and some tools store.
    constants=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    map=_map,
    write_fields=_write_fields,
    read_fields=_read_fields,
)
