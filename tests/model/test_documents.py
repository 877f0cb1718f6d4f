"""Documents packed into one sample give what each gives alone: logits, losses and gradients, under every layout."""

import pytest
import torch

from megatron.model.gpt import GPTModel
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
    whole_gradients,
)

WORLD_SIZE = 4
LENGTHS = [[3, 1, 4], [8], [1, 6, 1]]  # of the documents of each sample
HEADS = {
    "multihead": {},
    "multiquery": {"attention_head_type": "multiquery"},
    "2 groups of 4 heads": {"num_query_groups": 2},
    "2 groups, rotary, window": {
        "num_query_groups": 2,
        "kv_channels": 6,
        "position_embedding_type": "rope",
        "window_size": 3,
    },
}


def starts_and_positions():
    """Where each token's document starts, and its place there: int64 [b, s] both."""
    starts = torch.tensor(
        [
            [sum(lengths[:n]) for n, length in enumerate(lengths) for _ in range(length)]
            for lengths in LENGTHS
        ]
    )
    return starts, torch.arange(SEQ_LENGTH) - starts


def alone(model: GPTModel):
    """Losses [b, s] and gradients of their weighted sum, each document in a call of its own."""
    tokens, labels, weights, _ = tiny_batch()
    losses = torch.empty(tokens.shape)
    for sample, lengths in enumerate(LENGTHS):
        begin = 0
        for length in lengths:
            here = (slice(sample, sample + 1), slice(begin, begin + length))
            out = model(tokens[here], labels=labels[here])
            losses[here] = out.detach()
            (out * weights[here]).sum().backward()
            begin += length
    return losses, whole_gradients(model)


def padded(changes, tp):
    return tiny_config(padded_vocab_size=-(-VOCAB_SIZE // (2 * tp)) * 2 * tp, **changes)


def check_packed(rank, changes, tp, sequence_parallel):
    whole = make_model(padded(changes, 1), make_context(WORLD_SIZE))
    randomize(whole)
    expected_losses, expected = alone(whole)

    model = make_model(
        padded(changes, tp), make_context(WORLD_SIZE, tp=tp), sequence_parallel=sequence_parallel
    )
    randomize(model)
    tokens, labels, weights, _ = tiny_batch()
    starts, positions = starts_and_positions()
    losses = model(tokens, labels=labels, position_ids=positions, document_starts=starts)
    (losses * weights).sum().backward()
    torch.testing.assert_close(losses, expected_losses, **TOLERANCE)
    assert_all_close(whole_gradients(model), expected)


@pytest.mark.parametrize("tp, sequence_parallel", [(1, False), (2, False), (2, True), (4, True)])
@pytest.mark.parametrize("heads", HEADS)
def test_packed_documents_are_as_if_alone(world, heads, tp, sequence_parallel):
    world(WORLD_SIZE).run(check_packed, HEADS[heads], tp, sequence_parallel)


@pytest.mark.parametrize("backend", ["explicit", "sdpa"])
@pytest.mark.parametrize("granularity", ["full", "selective"])
def test_recomputed_documents_are_as_if_alone(world, backend, granularity):
    changes = {"attention_backend": backend, "recompute_granularity": granularity}
    world(WORLD_SIZE).run(check_packed, changes, 2, True)


def check_logits(rank):
    model = make_model(tiny_config(), make_context(WORLD_SIZE))
    randomize(model)
    tokens, *_ = tiny_batch()
    starts, positions = starts_and_positions()
    packed = model(tokens, position_ids=positions, document_starts=starts)  # [s, b, v]
    for sample, lengths in enumerate(LENGTHS):
        begin = 0
        for length in lengths:
            here = slice(begin, begin + length)
            single = model(tokens[sample : sample + 1, here])[:, 0]
            torch.testing.assert_close(packed[here, sample], single, **TOLERANCE)
            begin += length


def test_logits_of_packed_documents_are_those_of_each_alone(world):
    world(WORLD_SIZE).run(check_logits)


def check_each_alone(rank):
    """Either option without the other: what the first document gives changes in no case, what others give in each."""
    model = make_model(tiny_config(), make_context(WORLD_SIZE))
    randomize(model)
    tokens, *_ = tiny_batch()
    starts, positions = starts_and_positions()
    options = {"position_ids": positions, "document_starts": starts}
    both = model(tokens, **options)
    neither = model(tokens)
    for name, value in options.items():
        one = model(tokens, **{name: value})
        for other in (both, neither):
            torch.testing.assert_close(one[:3, 0], other[:3, 0], **TOLERANCE)
            assert not torch.isclose(one[3:, 0], other[3:, 0], rtol=1e-2).all(dim=1).any()
    torch.testing.assert_close(both[:, 1], neither[:, 1], **TOLERANCE)  # one document


def test_options_are_independent(world):
    world(WORLD_SIZE).run(check_each_alone)


def check_dropout(rank, tp):
    """Dropout with documents is the same in every layout, and recomputation repeats it."""
    starts, positions = starts_and_positions()
    tokens, labels, weights, sample_ids = tiny_batch()
    changes = {"hidden_dropout": 0.3, "attention_dropout": 0.4, "num_query_groups": 2}
    results = []
    for size, recompute in ((1, None), (tp, "full")):
        config = padded(changes | {"recompute_granularity": recompute}, size)
        model = make_model(config, make_context(WORLD_SIZE, tp=size))
        randomize(model)
        losses = model(
            tokens,
            labels=labels,
            sample_ids=sample_ids,
            position_ids=positions,
            document_starts=starts,
        )
        (losses * weights).sum().backward()
        results.append((losses.detach(), whole_gradients(model)))
    torch.testing.assert_close(results[0][0], results[1][0], **TOLERANCE)
    assert_all_close(results[0][1], results[1][1])


def test_dropout_composes_with_documents_in_every_layout(world):
    world(WORLD_SIZE).run(check_dropout, 4)
