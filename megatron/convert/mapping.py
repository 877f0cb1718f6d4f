"""The weights of GPTBigCode in transformers, as rows of ours, and ours as rows of theirs.

Every tensor of the one side is a run of rows of one of the other or several such runs one after another, nothing
is transposed: GPTBigCode uses `nn.Linear`. So a conversion needs memory for a few rows, whatever the model. Knows
nothing of files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from megatron.errors import ConfigError
from megatron.options import ModelConfig


@dataclass(frozen=True)
class Rows:
    """Rows start … stop - 1 of a tensor of the other side, by its name."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of one side and the rows of the other that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


def check_gpt_bigcode(config: ModelConfig) -> None:
    """Raise ConfigError if GPTBigCode cannot hold such a model."""
    heads, groups = config.num_attention_heads, config.query_groups
    problems = {
        "rotary positions (--position-embedding-type rope)": config.has_rotary_positions,
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
                f"the model has {problem}, and GPTBigCode has no place for that: it cannot be exported "
                f"to this format"
            )


def is_multi_query(config: ModelConfig) -> bool:
    """Tell which of GPTBigCode's two attention layouts the model has; one head is both."""
    return config.query_groups == 1


def map_gpt_bigcode(config: ModelConfig) -> list[MappedTensor]:
    """List the tensors of GPTBigCodeForCausalLM in the order of its layers.

    Rows of padding after the vocabulary are left out. The LM head is listed only where it has its own weight.
    """
    check_gpt_bigcode(config)
    hidden, vocab = config.hidden_size, config.vocab_size
    tensors = [
        _whole("transformer.wte.weight", "embedding.word_embeddings.weight", vocab, hidden),
        _whole(
            "transformer.wpe.weight",
            "embedding.position_embeddings.weight",
            config.max_position_embeddings,
            hidden,
        ),
    ]
    for number in range(config.num_layers):
        tensors += _layer(config, f"transformer.h.{number}", f"layers.{number}")
    tensors += _norm("transformer.ln_f", "final_layernorm", hidden)
    if config.untie_embeddings_and_output_weights:
        tensors.append(_whole("lm_head.weight", "output_layer.weight", vocab, hidden))
    return tensors


def invert(tensors: list[MappedTensor]) -> list[MappedTensor]:
    """Turn tensors made of the other side's rows into the other side's, made of theirs. Every row must be used once."""
    parts: dict[str, dict[int, Rows]] = defaultdict(dict)  # by name, then by first row
    columns: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        place = 0
        for rows in tensor.rows:
            count = rows.stop - rows.start
            parts[rows.name][rows.start] = Rows(tensor.name, place, place + count)
            columns[rows.name] = tensor.shape[1:]
            place += count
    result = []
    for name, by_start in parts.items():
        end = 0
        for start, rows in sorted(by_start.items()):
            assert start == end, f"rows {end} to {start} of {name} have no source"
            end += rows.stop - rows.start
        ordered = tuple(rows for _, rows in sorted(by_start.items()))
        result.append(MappedTensor(name, (end, *columns[name]), ordered))
    return result


def _layer(config: ModelConfig, theirs: str, ours: str) -> list[MappedTensor]:
    hidden, ffn = config.hidden_size, config.ffn_size
    return [
        *_norm(f"{theirs}.ln_1", f"{ours}.input_layernorm", hidden),
        *_attention_input(config, f"{theirs}.attn.c_attn", f"{ours}.self_attention"),
        *_linear(f"{theirs}.attn.c_proj", f"{ours}.self_attention.dense", hidden, hidden),
        *_norm(f"{theirs}.ln_2", f"{ours}.post_attention_layernorm", hidden),
        *_linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.dense_h_to_4h", ffn, hidden),
        *_linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.dense_4h_to_h", hidden, ffn),
    ]


def _attention_input(config: ModelConfig, theirs: str, ours: str) -> list[MappedTensor]:
    """Join query [n d, h] and key_value [g (k, v) d, h] to c_attn.

    Multi-query: [all queries, key, value]. Multi-head: for each head [query, key, value], d rows each.
    """
    heads, d, hidden = config.num_attention_heads, config.head_dim, config.hidden_size
    query_rows = heads * d if is_multi_query(config) else d
    groups = config.query_groups

    def joined(kind: str, *columns: int) -> MappedTensor:
        rows = []
        for group in range(groups):
            query = query_rows * group
            rows.append(Rows(f"{ours}.query.{kind}", query, query + query_rows))
            rows.append(Rows(f"{ours}.key_value.{kind}", 2 * d * group, 2 * d * (group + 1)))
        return MappedTensor(f"{theirs}.{kind}", (heads * d + 2 * groups * d, *columns), tuple(rows))

    return [joined("weight", hidden), joined("bias")]


def _linear(theirs: str, ours: str, rows: int, columns: int) -> list[MappedTensor]:
    return [
        _whole(f"{theirs}.weight", f"{ours}.weight", rows, columns),
        _whole(f"{theirs}.bias", f"{ours}.bias", rows),
    ]


def _norm(theirs: str, ours: str, size: int) -> list[MappedTensor]:
    return [_whole(f"{theirs}.{kind}", f"{ours}.{kind}", size) for kind in ("weight", "bias")]


def _whole(theirs: str, ours: str, rows: int, *columns: int) -> MappedTensor:
    return MappedTensor(theirs, (rows, *columns), (Rows(ours, 0, rows),))
