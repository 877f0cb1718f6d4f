"""Recomputation changes memory and time, never a bit of the gradients."""

import functools

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from megatron.model.recompute import recompute_in_backward
from megatron.model.transformer import recompute_chunks
from tests.model.tiny import (
    make_context,
    make_model,
    randomize,
    tiny_batch,
    tiny_config,
    whole_gradients,
)

GRANULARITIES = [
    {"recompute_granularity": "selective"},
    {"recompute_granularity": "full"},
    {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2},
]
DROPOUT = {"hidden_dropout": 0.2, "attention_dropout": 0.3, "num_layers": 3}


def gradients(config, kernel_calls):
    """Gradients, and how often the attention kernel ran."""
    model = make_model(config, make_context(1))
    randomize(model)
    for layer in model.layers.values():
        attend = layer.self_attention.attend

        def counted(*args, attend=attend):
            kernel_calls.append(1)
            return attend(*args)

        layer.self_attention.attend = counted
    tokens, labels, weights, sample_ids = tiny_batch()
    (model(tokens, labels=labels, sample_ids=sample_ids) * weights).sum().backward()
    return whole_gradients(model)


def check_bits(rank, changes, backend):
    # one of torch's fused kernels draws its dropout from the generator: it too must repeat itself
    base = DROPOUT | {"attention_backend": backend}
    once, again = [], []
    expected = gradients(tiny_config(**base), once)
    torch.rand(7)  # the generator's state must not matter
    actual = gradients(tiny_config(**base, **changes), again)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    return len(once), len(again)


@pytest.mark.parametrize("changes", GRANULARITIES, ids=lambda c: "-".join(map(str, c.values())))
def test_recomputed_gradients_are_bit_equal_with_dropout(world, changes):
    ((once, again),) = world(1).run(check_bits, changes, "explicit")
    recomputed = {"selective": 3, "uniform": 3, "block": 2, None: 3}
    method = changes.get("recompute_method")
    if changes["recompute_granularity"] == "selective":
        method = "selective"
    assert (once, again) == (3, 3 + recomputed[method])


def test_fused_attention_repeats_its_dropout_when_recomputed(world):
    ((once, again),) = world(1).run(check_bits, {"recompute_granularity": "full"}, "sdpa")
    assert (once, again) == (3, 6)


def test_selective_recomputes_nothing_where_a_fused_kernel_stores_no_probabilities(world):
    ((once, again),) = world(1).run(check_bits, {"recompute_granularity": "selective"}, "sdpa")
    assert (once, again) == (3, 3)


MODULES = [("layernorm",), ("mlp_act",), ("core_attn", "layernorm", "mlp_act")]


def run_modules(modules, context, **parallel):
    """Gradients, and the bytes that autograd kept for backward."""
    chosen = {"recompute_granularity": "selective", "recompute_modules": modules}
    config = tiny_config(**DROPOUT, attention_backend="explicit", **(chosen if modules else {}))
    model = make_model(config, context, **parallel)
    randomize(model)
    tokens, labels, weights, sample_ids = tiny_batch()
    kept = {}

    def pack(x):
        kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model(tokens, labels=labels, sample_ids=sample_ids)
    num_bytes = sum({x.data_ptr(): x.untyped_storage().nbytes() for x in kept.values()}.values())
    (losses * weights).sum().backward()
    return whole_gradients(model), num_bytes, (config, tokens)


def check_modules(rank, size, modules):
    context = make_context(size, tp=size)
    parallel = {"sequence_parallel": size > 1}
    expected, all_bytes, _ = run_modules(None, context, **parallel)
    actual, num_bytes, (config, tokens) = run_modules(modules, context, **parallel)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    freed = 0
    if "layernorm" in modules:
        freed += 2 * config.hidden_size
    if "mlp_act" in modules:
        freed += config.ffn_size // size
    # of the heads' probabilities nothing is said here: their tensors differ
    freed *= 4 * tokens.numel() * config.num_layers
    assert num_bytes <= all_bytes - freed, (all_bytes - num_bytes, freed)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("modules", MODULES, ids="-".join)
def test_recomputed_modules_give_the_same_bits_and_free_their_outputs(world, modules, size):
    world(size).run(check_modules, size, modules)


def test_nothing_is_freed_where_no_gradient_will_come():
    x = torch.ones(3)
    recompute_in_backward(x, lambda: x, (x * 2,))
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_nothing_is_held_once_backward_has_used_it():
    x = torch.ones(3, requires_grad=True)
    source = x * 3
    output = source * 2
    consumer = output.sin()  # saves output
    kept = source.detach().clone()
    recompute_in_backward(output, functools.partial(torch.mul, kept, 2), (consumer,))
    loss = consumer.sum()
    memories = [StorageWeakRef(one.untyped_storage()) for one in (output, kept)]
    del output, kept, consumer
    assert not any(memory.expired() for memory in memories)
    loss.backward()  # whose graph outlives it: loss is still there
    assert all(memory.expired() for memory in memories)
    torch.testing.assert_close(x.grad, 6 * torch.full((3,), 6.0).cos())


def test_uniform_chunks_cover_a_number_of_layers_they_do_not_divide():
    config = tiny_config(
        recompute_granularity="full", recompute_method="uniform", recompute_num_layers=2
    )
    assert recompute_chunks(config, 5) == [
        (range(2), True),
        (range(2, 4), True),
        (range(4, 5), True),
    ]


def test_block_recomputes_no_more_layers_than_a_stage_has():
    config = tiny_config(
        recompute_granularity="full", recompute_method="block", recompute_num_layers=9
    )
    chunks = recompute_chunks(config, 2)
    assert [len(chunk) for chunk, is_recomputed in chunks if is_recomputed] == [1, 1]
    assert [len(chunk) for chunk, is_recomputed in chunks if not is_recomputed] == [0]
