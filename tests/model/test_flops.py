"""Counts of the published models, from their shapes alone."""

import pytest

from megatron.model.flops import attended_pairs, flops_per_token, num_parameters
from megatron.options import ModelConfig
from tests.model.tiny import make_context, make_model, tiny_config

# layers, hidden, heads; 10^9 parameters; GFLOP a token at 8192, full and causal attention
PUBLISHED = {
    "1b": (24, 2048, 16, 1.137, 11.55, 9.14),
    "3b": (36, 2816, 22, 3.043, 28.08, 23.10),
    "7b": (42, 4096, 32, 7.327, 60.66, 52.21),
    "15b": (40, 6144, 48, 15.517, 116.95, 104.87),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_published_totals(name):
    layers, hidden, heads, parameters, full, causal = PUBLISHED[name]
    config = ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        attention_head_type="multiquery",
        max_position_embeddings=8192,
        vocab_size=49152,
        padded_vocab_size=49152,
    )
    assert num_parameters(config) / 1e9 == pytest.approx(parameters, abs=5e-4)
    flops = flops_per_token(config, 8192)
    assert flops.full / 1e9 == pytest.approx(full, abs=0.01)
    assert flops.causal / 1e9 == pytest.approx(causal, abs=0.01)


def check_count(rank, changes):
    config = tiny_config(**changes)
    model = make_model(config, make_context(1))
    return num_parameters(config), sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_query_groups": 2, "untie_embeddings_and_output_weights": True},
        {"attention_head_type": "multiquery", "disable_bias_linear": True},
        {"position_embedding_type": "rope", "kv_channels": 4},
    ],
)
def test_counted_parameters_are_those_of_the_model(world, changes):
    ((counted, held),) = world(1).run(check_count, changes)
    assert counted == held


@pytest.mark.parametrize("window", [None, 1, 3, 9, 10])
def test_window_leaves_the_pairs_that_it_shows(window):
    shown = sum(
        1 if i == j else 2  # the half above the diagonal counts as the one below
        for i in range(9)
        for j in range(i + 1)
        if window is None or i - j < window
    )
    assert attended_pairs(9, window) == shown
    config = tiny_config(window_size=window)
    flops, whole = flops_per_token(config, 9), flops_per_token(tiny_config(), 9)
    assert flops.full == whole.full
    assert flops.attention_causal / flops.attention_full == pytest.approx(shown / 81 / 2)
