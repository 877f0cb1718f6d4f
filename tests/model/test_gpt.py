"""What a model does with its mode, its dropout and its names."""

import pytest
import torch

from megatron.kernels import cpu_library
from tests.model.tiny import (
    make_context,
    make_model,
    randomize,
    tiny_batch,
    tiny_config,
    whole_gradients,
)

DROPOUT = {"hidden_dropout": 0.5, "attention_dropout": 0.5}


def check_dropout_modes(rank):
    context = make_context(1)
    tokens, labels, _, sample_ids = tiny_batch()
    dropping = make_model(tiny_config(**DROPOUT), context)
    plain = make_model(tiny_config(), context)
    for model in (dropping, plain):
        randomize(model)
    expected = plain(tokens, labels=labels)
    trained = dropping(tokens, labels=labels, sample_ids=sample_ids)
    assert not torch.allclose(trained, expected, rtol=0.05)
    # a function of the sample, wherever it stands in a batch
    moved = dropping(tokens[1:], labels=labels[1:], sample_ids=sample_ids[1:])
    torch.testing.assert_close(moved, trained[1:], rtol=1e-6, atol=1e-6)
    others = dropping(tokens, labels=labels, sample_ids=sample_ids + 1)
    assert not torch.allclose(others, trained, rtol=0.01)
    dropping.eval()
    torch.testing.assert_close(dropping(tokens, labels=labels), expected, rtol=0, atol=0)


def test_dropout_follows_the_sample_and_ends_in_evaluation(world):
    world(1).run(check_dropout_modes)


def check_seed(rank):
    """Two seeds start from other values; one seed from the same."""
    context = make_context(1)
    first, second, third = (make_model(tiny_config(), context, seed=seed) for seed in (1, 1, 2))
    for name, parameter in first.named_parameters():
        value = parameter.to_local()
        assert torch.equal(value, dict(second.named_parameters())[name].to_local())
        if value.ndim == 2:
            other = dict(third.named_parameters())[name].to_local()
            assert not torch.isclose(value, other).any(dim=1).all()
        else:
            assert value.unique().tolist() == [1.0 if "layernorm.weight" in name else 0.0]


def test_initial_values_follow_the_seed(world):
    world(1).run(check_seed)


def check_std(rank):
    config = tiny_config(hidden_size=64, ffn_hidden_size=256, num_layers=8, init_method_std=0.1)
    model = make_model(config, make_context(1), layers=range(5, 6))
    expected = {
        "embedding.word_embeddings.weight": 0.1,
        "embedding.position_embeddings.weight": 0.1,
        "layers.5.mlp.dense_h_to_4h.weight": 0.1,
        "layers.5.mlp.dense_4h_to_h.weight": 0.1 / 4,
        "layers.5.self_attention.query.weight": 0.1,
        "layers.5.self_attention.key_value.weight": 0.1,
        "layers.5.self_attention.dense.weight": 0.1 / 4,
    }
    values = {n: p.to_local() for n, p in model.named_parameters() if p.ndim == 2}
    assert values.keys() == expected.keys()
    for name, std in expected.items():
        tolerance = 4 * std / (2 * values[name].numel()) ** 0.5  # 4 standard errors
        assert abs(values[name].std().item() - std) < tolerance, name
        assert abs(values[name].mean().item()) < 2 * tolerance, name


def test_initial_values_have_the_std_of_their_role(world):
    world(1).run(check_std)


def check_sites(rank):
    """Collect the row keys of every place that drops, in one forward pass."""
    model = make_model(tiny_config(**DROPOUT), make_context(1))
    tokens, labels, _, sample_ids = tiny_batch()
    seen = []
    for layer in model.layers.values():

        def add(*args, function=layer.bias_dropout_residual):
            seen.append(args[3].row_keys)
            return function(*args)

        def attend(*args, function=layer.self_attention.attend):
            seen.append(args[3].row_keys)
            return function(*args)

        def add_and_normalize(*args, function=layer.post_attention_layernorm.add_and_normalize):
            seen.append(args[3].row_keys)
            return function(*args)

        layer.bias_dropout_residual = add
        layer.post_attention_layernorm.add_and_normalize = add_and_normalize
        layer.self_attention.attend = attend
    model(tokens, labels=labels, sample_ids=sample_ids)
    return torch.stack(seen)


def test_every_site_token_and_layer_draws_its_own_bits(world):
    (keys,) = world(1).run(check_sites)
    assert len(keys) == 6  # two layers of three sites
    assert len(keys.unique()) == keys.numel()


def losses_and_gradients(context, **changes):
    """Of a tiny model with dropout, and which implementations it takes of what is no attention or product."""
    model = make_model(tiny_config(**DROPOUT, **changes), context)
    randomize(model)
    tokens, labels, weights, sample_ids = tiny_batch()
    losses = model(tokens, labels=labels, sample_ids=sample_ids)
    (losses * weights).sum().backward()
    return {"losses": losses.detach(), **whole_gradients(model)}


def check_fused_operations(rank):
    context = make_context(1)
    fused = losses_and_gradients(context, kernels=("fused",))
    for name, expected in losses_and_gradients(context, kernels=("reference",)).items():
        # sums in another order
        torch.testing.assert_close(fused[name], expected, rtol=1e-4, atol=1e-4)


def test_operations_fused_for_a_cpu_give_the_losses_and_gradients_of_the_references(world):
    if (obstacle := cpu_library.obstacle("_cpu_operations")) is not None:
        pytest.skip(obstacle)
    world(1).run(check_fused_operations)
