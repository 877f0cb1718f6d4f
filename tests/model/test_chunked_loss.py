"""--logits-chunk-size changes memory and time: losses and gradients are those of all logits at once."""

from unittest import mock

import pytest
import torch

from megatron.model import gpt
from megatron.parallel.data_parallel import shard_data_parallel
from tests.model.tiny import (
    BATCH_SIZE,
    SEQ_LENGTH,
    TOLERANCE,
    VOCAB_SIZE,
    assert_all_close,
    make_context,
    make_model,
    randomize,
    tiny_batch,
    tiny_config,
    whole_gradients,
)

NUM_TOKENS = BATCH_SIZE * SEQ_LENGTH
CHUNK_SIZES = [5, 1]  # with a rest of 4 tokens, across samples; of one token
UNTIED = {"untie_embeddings_and_output_weights": True}
# (processes of tp, with sequence parallel, rows of the vocabulary)
LAYOUTS = {
    "one process": (1, False, VOCAB_SIZE),
    "one process, padded": (1, False, VOCAB_SIZE + 6),
    "tp 2": (2, False, VOCAB_SIZE),
    "tp 2, padded": (2, False, VOCAB_SIZE + 6),
    "tp 2, sequence parallel": (2, True, VOCAB_SIZE + 6),
}


def counted():
    """Let the model count how often it computes its loss in chunks."""
    return mock.patch.object(
        gpt, "chunked_linear_cross_entropy", wraps=gpt.chunked_linear_cross_entropy
    )


def run(config, context, **parallel):
    """Losses with and without gradients, the gradients, and how often the loss was in chunks."""
    model = make_model(config, context, **parallel)
    randomize(model)
    tokens, labels, weights, _ = tiny_batch()
    with counted() as chunked:
        losses = model(tokens, labels=labels)
        (losses * weights).sum().backward()
        model.eval()
        with torch.no_grad():
            evaluated = model(tokens, labels=labels)
    return losses.detach(), evaluated, whole_gradients(model), chunked.call_count


def check_layout(rank, size, changes, chunk_size, layout):
    tp, sequence_parallel, num_rows = LAYOUTS[layout]
    alone = tiny_config(**changes)
    expected_losses, _, expected, num_calls = run(alone, make_context(size))
    assert num_calls == 0

    config = tiny_config(padded_vocab_size=num_rows, logits_chunk_size=chunk_size, **changes)
    losses, evaluated, gradients, num_calls = run(
        config, make_context(size, tp=tp), sequence_parallel=sequence_parallel
    )
    assert num_calls == 2
    assert losses.dtype == evaluated.dtype == torch.float32
    torch.testing.assert_close(losses, expected_losses, **TOLERANCE)
    torch.testing.assert_close(evaluated, expected_losses, **TOLERANCE)
    assert_all_close(gradients, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("changes", [{}, UNTIED], ids=["tied", "untied"])
def test_losses_and_gradients_equal_those_of_all_logits(world, changes, chunk_size, layout):
    size = LAYOUTS[layout][0]
    world(size).run(check_layout, size, changes, chunk_size, layout)


def check_number_of_chunks(rank, chunk_size):
    """Count chunks of forward and of backward."""
    config = tiny_config(logits_chunk_size=chunk_size)
    model = make_model(config, make_context(1))
    ours = model.cross_entropy
    model.cross_entropy = mock.Mock(wraps=ours)
    tokens, labels, _, _ = tiny_batch()
    with counted() as chunked:
        model(tokens, labels=labels).sum().backward()
    called = model.cross_entropy
    sizes = [len(call.args[0]) for call in called.row_statistics.call_args_list]
    assert sizes == [len(call.args[0]) for call in called.gradient_.call_args_list]
    return chunked.call_count, sizes


@pytest.mark.parametrize(
    "chunk_size, num_calls, sizes",
    [
        (5, 1, [5, 5, 5, 5, 4]),
        (NUM_TOKENS - 1, 1, [NUM_TOKENS - 1, 1]),
        (NUM_TOKENS, 0, [NUM_TOKENS]),
        (NUM_TOKENS + 1, 0, [NUM_TOKENS]),
    ],
)
def test_no_more_logits_exist_at_once_than_asked_for(world, chunk_size, num_calls, sizes):
    assert world(1).run(check_number_of_chunks, chunk_size) == [(num_calls, sizes)]


def check_stages(rank, changes):
    """Two stages one after the other in this process; the second has the head but not the tokens."""
    alone = tiny_config(**changes)
    expected_losses, _, expected, _ = run(alone, make_context(2))
    config = tiny_config(padded_vocab_size=56, logits_chunk_size=5, **changes)
    first, last = (
        make_model(
            config,
            make_context(2, tp=2),
            layers=range(number, number + 1),
            is_first=number == 0,
            is_last=number == 1,
            sequence_parallel=True,
        )
        for number in range(2)
    )
    randomize(first), randomize(last)
    tokens, labels, weights, _ = tiny_batch()
    out = first(tokens)
    x = out.detach().requires_grad_()
    with counted() as chunked:
        losses = last(x, labels=labels)
    assert chunked.call_count == 1
    torch.testing.assert_close(losses.detach(), expected_losses, **TOLERANCE)
    losses.backward(weights)
    out.backward(x.grad)
    actual = whole_gradients(first)
    # the ends' copies of the tied embedding each hold a part of its gradient
    for name, gradient in whole_gradients(last).items():
        actual[name] = actual[name] + gradient if name in actual else gradient
    assert_all_close(actual, expected)


@pytest.mark.parametrize("changes", [{}, UNTIED], ids=["tied", "untied"])
def test_the_last_stage_of_a_pipeline_may_chunk(world, changes):
    world(2).run(check_stages, changes)


def check_fully_sharded(rank):
    """TP 2 x DP 2, one sample at a time: losses must not be a view, on which `fully_shard` hangs no hook."""
    alone = make_model(tiny_config(), make_context(4))
    randomize(alone)
    tokens, labels, weights, _ = tiny_batch(4)
    losses = alone(tokens, labels=labels)
    (losses * weights).sum().backward()

    config = tiny_config(padded_vocab_size=56, logits_chunk_size=3)  # 2 chunks of 3, a rest of 2
    context = make_context(4, tp=2, sharded=True)
    model = make_model(config, context, sequence_parallel=True)
    randomize(model)
    shard_data_parallel(model, list(model.layers.values()), context, torch.float32)
    first, last = torch.arange(4).chunk(2)[context.dp_rank].split(1)
    with counted() as chunked:
        for mine in (first, last):
            model.set_requires_gradient_sync(mine is last)
            model.set_is_last_backward(mine is last)
            actual = model(tokens[mine], labels=labels[mine])
            torch.testing.assert_close(actual, losses[mine].detach(), **TOLERANCE)
            (actual * weights[mine]).sum().backward()
    assert chunked.call_count == 2
    assert_all_close(whole_gradients(model), whole_gradients(alone))


def test_micro_batches_under_fully_shard_equal_one_process(world):
    world(4).run(check_fully_sharded)
