"""The rows of ours that make up each tensor of an architecture of transformers."""

import pytest
import torch
from transformers import (
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from megatron.convert.hf_export import architecture_of
from megatron.errors import ConfigError
from tests.convert.runs import MULTI_HEAD, MULTI_QUERY, STARCODER2, model_config, whole_weights


@pytest.mark.parametrize("heads", [MULTI_QUERY, MULTI_HEAD])
@pytest.mark.parametrize("is_untied", [False, True])
def test_names_and_shapes_are_those_of_transformers(heads, is_untied):
    config = model_config(untie_embeddings_and_output_weights=is_untied, **heads)
    theirs = GPTBigCodeForCausalLM(
        GPTBigCodeConfig(
            vocab_size=280,
            n_positions=12,
            n_embd=15,
            n_layer=2,
            n_head=3,
            n_inner=26,
            multi_query=heads is MULTI_QUERY,
            tie_word_embeddings=not is_untied,
        )
    )
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters()}
    assert {tensor.name: tensor.shape for tensor in architecture_of(config).map(config)} == expected


@pytest.mark.parametrize("is_untied", [False, True])
@pytest.mark.parametrize("groups, width", [(1, 6), (2, 6), (4, 8)])
def test_names_and_shapes_are_those_of_starcoder2(groups, width, is_untied):
    changes = {
        "num_query_groups": groups,
        "kv_channels": width,
        "disable_bias_linear": is_untied,
        "untie_embeddings_and_output_weights": is_untied,
    }
    config = model_config(**(STARCODER2 | changes))
    theirs = Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=280,
            hidden_size=24,
            intermediate_size=26,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=groups,
            head_dim=width,
            use_bias=not is_untied,
            tie_word_embeddings=not is_untied,
        )
    )
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters()}
    found = {tensor.name: tensor.shape for tensor in architecture_of(config).map(config)}
    assert found == expected


@pytest.mark.parametrize("heads", [MULTI_QUERY, MULTI_HEAD, STARCODER2])
def test_every_row_of_ours_is_used_once_except_padding(heads):
    config = model_config(**heads)
    used = {
        name: torch.zeros(len(tensor), dtype=int) for name, tensor in whole_weights(config).items()
    }
    for tensor in architecture_of(config).map(config):
        for rows in tensor.rows:
            used[rows.name][rows.start : rows.stop] += 1
        assert sum(rows.stop - rows.start for rows in tensor.rows) == tensor.shape[0]
    padding = used.pop("embedding.word_embeddings.weight")[280:]
    assert padding.tolist() == [0] * 8
    assert all(bool((count == 1).all()) for count in used.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 15, "num_query_groups": 3, **MULTI_HEAD}, "grouped heads"),
        ({"disable_bias_linear": True}, "without bias"),
        ({"kv_channels": 4}, "heads of width 4"),
        ({"window_size": 5}, "a sliding window .--window-size 5."),
    ],
)
def test_what_gpt_bigcode_cannot_hold_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=f"{words}.*cannot be exported"):
        config = model_config(**changes)
        architecture_of(config).map(config)
