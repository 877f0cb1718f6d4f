"""Every layout is the same model: initial bits, losses and gradients equal those of one process."""

import pytest
import torch

from megatron.model.gpt import GPTModel
from megatron.parallel.data_parallel import shard_data_parallel
from tests.model.tiny import (
    SEQ_LENGTH,
    TOLERANCE,
    VOCAB_SIZE,
    assert_all_close,
    make_context,
    make_model,
    randomize,
    tiny_batch,
    tiny_config,
    whole,
    whole_gradients,
)

WORLD_SIZE = 4
ROTARY = {
    "position_embedding_type": "rope",
    "rotary_base": 50.0,
    "kv_channels": 6,
    "num_query_groups": 2,
    "window_size": 3,
}
HEADS = {
    "multihead": {},
    "multiquery": {"attention_head_type": "multiquery"},
    "2 groups of 4 heads": {"num_query_groups": 2},
    "3 groups of 12 heads": {"num_query_groups": 3, "num_attention_heads": 12},
    "3 groups of 24 heads": {"num_query_groups": 3, "num_attention_heads": 24},
    "2 groups, rotary, window": ROTARY,
}


def padded(config_changes: dict, tp: int):
    """As a run would, pad the vocabulary by tp."""
    return tiny_config(padded_vocab_size=-(-VOCAB_SIZE // (2 * tp)) * 2 * tp, **config_changes)


def run(model, **inputs):
    """Losses [b, s] and gradients of their weighted sum."""
    tokens, labels, weights, sample_ids = tiny_batch()
    losses = model(tokens, labels=labels, sample_ids=sample_ids, **inputs)
    (losses * weights).sum().backward()
    return losses.detach(), whole_gradients(model)


def check_layout(rank, changes, tp, sequence_parallel):
    """Compare a layout with a model of one process, which every rank computes for itself."""
    alone = make_model(padded(changes, 1), make_context(WORLD_SIZE, tp=1))
    randomize(alone)
    expected_losses, expected = run(alone)

    model = make_model(
        padded(changes, tp),
        make_context(WORLD_SIZE, tp=tp),
        sequence_parallel=sequence_parallel,
    )
    randomize(model)
    losses, gradients = run(model)
    torch.testing.assert_close(losses, expected_losses, **TOLERANCE)
    assert_all_close(gradients, expected)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("heads", HEADS)
def test_tensor_parallel_losses_and_gradients_equal_one_process(
    world, heads, tp, sequence_parallel
):
    world(WORLD_SIZE).run(check_layout, HEADS[heads], tp, sequence_parallel)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_untied_output_without_biases_equals_one_process(world, sequence_parallel):
    changes = {
        "untie_embeddings_and_output_weights": True,
        "disable_bias_linear": True,
        "attention_head_type": "multiquery",
    }
    world(WORLD_SIZE).run(check_layout, changes, 2, sequence_parallel)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_dropout_of_every_kind_is_the_same_in_every_layout(world, sequence_parallel):
    changes = {
        "hidden_dropout": 0.3,
        "attention_dropout": 0.2,
        "num_query_groups": 2,
        "recompute_granularity": "full",
    }
    world(WORLD_SIZE).run(check_layout, changes, 4, sequence_parallel)


def check_initial_bits(rank, changes, tp):
    alone = make_model(padded(changes, 1), make_context(WORLD_SIZE, tp=1))
    model = make_model(padded(changes, tp), make_context(WORLD_SIZE, tp=tp))
    expected = {name: whole(parameter) for name, parameter in alone.named_parameters()}
    for name, parameter in model.named_parameters():
        actual = whole(parameter)
        if "word_embeddings" in name or "output_layer" in name:
            actual = actual[:VOCAB_SIZE]
        assert torch.equal(actual, expected[name]), name
    # more rows than one block of draws, and another start than a block's
    assert len(expected["layers.0.mlp.dense_h_to_4h.weight"]) > 128


@pytest.mark.parametrize("tp", [2, 4])
def test_initial_values_are_bit_equal_in_every_layout(world, tp):
    changes = {
        "ffn_hidden_size": 300,
        "num_query_groups": 2,
        "untie_embeddings_and_output_weights": True,
    }
    world(WORLD_SIZE).run(check_initial_bits, changes, tp)


def check_fully_sharded(rank, changes, sequence_parallel, dp_is_sharded):
    """TP 2 x DP 2 under `fully_shard`: each data parallel process sees half the batch."""
    alone = make_model(padded(changes, 1), make_context(WORLD_SIZE))
    randomize(alone)
    tokens, labels, weights, sample_ids = tiny_batch(4)
    losses = alone(tokens, labels=labels, sample_ids=sample_ids)
    (losses * weights).sum().backward()
    expected = whole_gradients(alone)

    context = make_context(WORLD_SIZE, tp=2, sharded=dp_is_sharded)
    model = make_model(padded(changes, 2), context, sequence_parallel=sequence_parallel)
    randomize(model)
    shard_data_parallel(model, list(model.layers.values()), context, torch.float32)
    for mine in torch.arange(4).chunk(2)[context.dp_rank].split(1):  # two micro-batches
        is_last = int(mine) % 2 == 1
        model.set_requires_gradient_sync(is_last)
        model.set_is_last_backward(is_last)
        actual = model(tokens[mine], labels=labels[mine], sample_ids=sample_ids[mine])
        torch.testing.assert_close(actual, losses[mine].detach(), **TOLERANCE)
        (actual * weights[mine]).sum().backward()
    assert_all_close(whole_gradients(model), expected)


@pytest.mark.parametrize("dp_is_sharded", [False, True])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_gradients_under_fully_shard_equal_one_process(world, sequence_parallel, dp_is_sharded):
    changes = {"attention_head_type": "multiquery"}
    world(WORLD_SIZE).run(check_fully_sharded, changes, sequence_parallel, dp_is_sharded)


@pytest.mark.parametrize("method, num_layers", [("uniform", 2), ("uniform", 3), ("block", 2)])
def test_recomputation_under_fully_shard_equals_one_process(world, method, num_layers):
    changes = {
        "num_layers": 4,
        "attention_head_type": "multiquery",
        "hidden_dropout": 0.2,
        "recompute_granularity": "full",
        "recompute_method": method,
        "recompute_num_layers": num_layers,
    }
    world(WORLD_SIZE).run(check_fully_sharded, changes, True, True)


def check_stages(rank, changes, sequence_parallel):
    """Three stages one after another in this process: hidden states and their gradients handed on."""
    config = padded({"num_layers": 3, "hidden_dropout": 0.3} | changes, 2)
    context = make_context(WORLD_SIZE, tp=2)
    model = make_model(config, context, sequence_parallel=sequence_parallel)
    randomize(model)
    positions = torch.arange(SEQ_LENGTH).flip(0).expand(3, SEQ_LENGTH)
    expected_losses, expected = run(model, position_ids=positions)

    tokens, labels, weights, sample_ids = tiny_batch()
    stages = [
        make_model(
            config,
            context,
            layers=layers,
            is_first=layers.start == 0,
            is_last=layers.stop == 3,
            sequence_parallel=sequence_parallel,
        )
        for layers in (range(1), range(1, 2), range(2, 3))
    ]
    inputs, outputs = [], []
    x = tokens
    for stage in stages:
        randomize(stage)
        inputs.append(x)
        out = stage(x, labels=labels, sample_ids=sample_ids, position_ids=positions)
        outputs.append(out)
        x = out.detach().requires_grad_()
    torch.testing.assert_close(outputs[-1], expected_losses, rtol=0, atol=0)
    gradient = weights
    for x, out in zip(reversed(inputs), reversed(outputs), strict=True):
        out.backward(gradient)
        gradient = x.grad

    # the ends' copies of the tied embedding each hold a part of its gradient
    actual = {}
    for stage in stages:
        for name, gradient in whole_gradients(stage).items():
            actual[name] = actual[name] + gradient if name in actual else gradient
    assert_all_close(actual, expected)
    assert [name for name in whole_gradients(stages[1]) if not name.startswith("layers.1.")] == []


@pytest.mark.parametrize("changes", [{}, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_stages_fed_one_to_another_equal_the_whole(world, sequence_parallel, changes):
    world(WORLD_SIZE).run(check_stages, changes, sequence_parallel)


def check_dtype(rank, dtype):
    """What `fully_shard` casts to is what the layers compute in; the loss is fp32 all the same."""
    config = padded({"attention_head_type": "multiquery"}, 2)
    context = make_context(WORLD_SIZE, tp=2, sharded=True)
    alone = make_model(padded({"attention_head_type": "multiquery"}, 1), make_context(WORLD_SIZE))
    tokens, labels, _, _ = tiny_batch()
    expected = alone(tokens, labels=labels)
    model: GPTModel = make_model(config, context, sequence_parallel=True)
    shard_data_parallel(model, list(model.layers.values()), context, dtype)
    assert model(tokens).dtype == dtype
    assert model(tokens).shape == (SEQ_LENGTH, len(tokens), config.padded_vocab_size // 2)
    losses = model(tokens, labels=labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.0)
    losses.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(world, dtype):
    world(WORLD_SIZE).run(check_dtype, dtype)
