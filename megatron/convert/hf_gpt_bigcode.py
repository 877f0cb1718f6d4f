"""GPTBigCode of transformers: learned positions, multi-query or multi-head attention (StarCoder, SantaCoder)."""

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
from megatron.errors import ConfigError
from megatron.options import ModelConfig

WORD_EMBEDDINGS = "transformer.wte.weight"
FIXED: tuple[tuple[str, object, str], ...] = (
    ("scale_attn_weights", True, "scores are always divided by the root of the head's width here"),
)


def _write_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": model.max_position_embeddings,
        "n_embd": model.hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn_size,
        "multi_query": _is_multi_query(model),
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": model.layernorm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
        "scale_attn_weights": True,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
    }


def _read_fields(fields: Fields, accepts_exact_gelu: bool) -> ModelConfig:
    check_fixed(fields, FIXED)
    check_activation(fields, "activation_function", accepts_exact_gelu)
    heads, is_multi_query = fields.whole("n_head"), fields.flag("multi_query", True)
    fields.require(
        "num_key_value_heads",
        [1 if is_multi_query else heads],
        f"multi_query is {is_multi_query} and n_head {heads}",
    )
    rows = fields.whole("vocab_size")
    return ModelConfig(
        num_layers=fields.whole("n_layer"),
        hidden_size=fields.whole("n_embd"),
        ffn_hidden_size=fields.whole("n_inner", 4 * fields.whole("n_embd")),
        num_attention_heads=heads,
        attention_head_type="multiquery" if is_multi_query else "multihead",
        max_position_embeddings=fields.whole("n_positions"),
        layernorm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        hidden_dropout=hidden_dropout(fields, "resid_pdrop", "embd_pdrop", 0.1),
        attention_dropout=fields.number("attn_pdrop", 0.1),
        init_method_std=fields.number("initializer_range", 0.02),
        untie_embeddings_and_output_weights=not fields.flag("tie_word_embeddings", True),
        vocab_size=rows,
        padded_vocab_size=rows,
    )


def _check(config: ModelConfig) -> None:
    """Raise ConfigError if GPTBigCode cannot hold such a model."""
    heads, groups = config.num_attention_heads, config.query_groups
    problems = {
        f"a sliding window (--window-size {config.window_size})": config.window_size is not None,
        f"grouped heads ({groups} key/value heads for {heads} query heads)": groups
        not in (1, heads),
        "linear layers without bias (--disable-bias-linear)": config.disable_bias_linear,
        f"heads of width {config.head_dim} in a hidden size of {config.hidden_size} "
        f"(--kv-channels)": heads * config.head_dim != config.hidden_size,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise ConfigError(
                f"the model has {problem}, and GPTBigCode has no place for that; Starcoder2 has, but only with "
                f"rotary positions (--position-embedding-type rope): it cannot be exported"
            )


def _is_multi_query(config: ModelConfig) -> bool:
    """Tell which of GPTBigCode's two attention layouts the model has; one head is both."""
    return config.query_groups == 1


def _map(config: ModelConfig) -> list[MappedTensor]:
    _check(config)
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [
        whole(WORD_EMBEDDINGS, "embedding.word_embeddings.weight", vocab, hidden),
        whole(
            "transformer.wpe.weight",
            "embedding.position_embeddings.weight",
            config.max_position_embeddings,
            hidden,
        ),
    ]
    for number in range(config.num_layers):
        tensors += _layer(config, f"transformer.h.{number}", f"layers.{number}")
    tensors += norm("transformer.ln_f", "final_layernorm", hidden)
    if config.untie_embeddings_and_output_weights:
        tensors.append(whole(LM_HEAD, "output_layer.weight", vocab, hidden))
    return tensors


def _layer(config: ModelConfig, theirs: str, ours: str) -> list[MappedTensor]:
    hidden, ffn = config.hidden_size, config.ffn_size
    return [
        *norm(f"{theirs}.ln_1", f"{ours}.input_layernorm", hidden),
        *_attention_input(config, f"{theirs}.attn.c_attn", f"{ours}.self_attention"),
        *linear(f"{theirs}.attn.c_proj", f"{ours}.self_attention.dense", hidden, hidden),
        *norm(f"{theirs}.ln_2", f"{ours}.post_attention_layernorm", hidden),
        *linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.dense_h_to_4h", ffn, hidden),
        *linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.dense_4h_to_h", hidden, ffn),
    ]


def _attention_input(config: ModelConfig, theirs: str, ours: str) -> list[MappedTensor]:
    """Join query [n d, h] and key_value [g (k, v) d, h] to c_attn.

    Multi-query: [all queries, key, value]. Multi-head: for each head [query, key, value], d rows each.
    """
    heads, d, hidden = config.num_attention_heads, config.head_dim, config.hidden_size
    query_rows = heads * d if _is_multi_query(config) else d
    groups = config.query_groups

    def joined(kind: str, *columns: int) -> MappedTensor:
        rows = []
        for group in range(groups):
            query = query_rows * group
            rows.append(Rows(f"{ours}.query.{kind}", query, query + query_rows))
            rows.append(Rows(f"{ours}.key_value.{kind}", 2 * d * group, 2 * d * (group + 1)))
        return MappedTensor(f"{theirs}.{kind}", (heads * d + 2 * groups * d, *columns), tuple(rows))

    return [joined("weight", hidden), joined("bias")]


GPT_BIGCODE = Architecture(
    model_type="gpt_bigcode",
    class_name="GPTBigCodeForCausalLM",
    word_embeddings=WORD_EMBEDDINGS,
    # The causal mask and its fill value, which earlier versions of transformers stored.
    constants=re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),
    map=_map,
    write_fields=_write_fields,
    read_fields=_read_fields,
)
