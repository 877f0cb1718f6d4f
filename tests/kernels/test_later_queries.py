"""Queries that are the last rows of the keys get what they get among all queries, values and gradients.

The whole is the reference's, in fp64; a part of a sequence is what a process of context parallelism computes.
"""

import pytest
import torch

from megatron.kernels.attention import (
    AttentionDropout,
    explicit_attention,
    sdpa_attention,
)
from megatron.kernels.blocked_attention import blocked_attention
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import token_keys
from megatron.kernels.flash_attention import flash_attention
from tests.kernels.test_documents import CPU, packed_attention, starts_of
from tests.kernels.tiled import TILED

SAMPLES = [[70, 3, 2, 75], [33, 100, 17]]  # lengths of the documents
LENGTH = 150
FIRST = [1, 40, 133, 149]  # position of the first query: near either end, and within blocks


def draw(groups):
    generator = torch.Generator().manual_seed(groups)
    return [
        torch.randn(LENGTH, 2, heads, 5, generator=generator, dtype=torch.float64)
        for heads in (6, groups, groups)
    ]


def documents_of(first, window, samples):
    starts = starts_of(samples)[:, first:] if samples else None
    return Documents.create(
        starts, CPU, shape=(2, LENGTH - first), window=window, first_position=first
    )


def run(function, inputs, first, *, masks=(None, None), probability=0.0, dtype=torch.float64):
    """Give the context of the queries from `first` on and the gradients of queries, keys and values."""
    query, key, value = (x.to(dtype).requires_grad_() for x in inputs)
    rows = token_keys(torch.arange(2), torch.arange(LENGTH))
    dropout = AttentionDropout(probability, rows[first:], 2, seed=0) if probability else None
    context = function(query[first:], key, value, dropout, documents_of(first, *masks))
    weights = torch.randn(LENGTH, 2, 30, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad((context * weights[first:]).sum(), (query, key, value))
    return [x.double() for x in (context, *gradients)]


def run_whole(inputs, first, *, masks=(None, None), probability=0.0):
    """Give the same of all queries, of which those from `first` on count."""

    def last_rows(query, key, value, dropout, documents):
        rows = token_keys(torch.arange(2), torch.arange(LENGTH))
        dropped = AttentionDropout(probability, rows, 2, seed=0) if probability else None
        all_queries = torch.cat([inputs[0][:first], query])
        whole = explicit_attention(all_queries, key, value, dropped, documents_of(0, *masks))
        return whole[first:]

    return run(last_rows, inputs, first)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "function",
    [explicit_attention, sdpa_attention, flash_attention, blocked_attention, TILED],
)
def test_last_queries_attend_to_all_before_them(function, first, groups):
    inputs = draw(groups)
    expected = run_whole(inputs, first)
    actual = run(function, inputs, first, dtype=torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


MASKS = {
    "documents": (None, SAMPLES),
    "window": (40, None),
    "documents and window": (40, SAMPLES),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("function", [explicit_attention, sdpa_attention, blocked_attention, TILED])
def test_last_queries_see_their_document_as_far_as_the_window_goes(function, masks, first):
    inputs = draw(2)
    expected = run_whole(inputs, first, masks=masks)
    actual = run(function, inputs, first, masks=masks, dtype=torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_flash_is_handed_the_last_queries_of_each_document(monkeypatch, masks, first):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_attention)
    inputs = draw(2)
    expected = run_whole(inputs, first, masks=masks)
    actual = run(flash_attention, inputs, first, masks=masks, dtype=torch.float32)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", [(None, None), *MASKS.values()])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("function", [explicit_attention, blocked_attention, TILED])
def test_last_queries_drop_the_keys_that_they_drop_among_all(function, first, masks):
    inputs = draw(1)
    expected = run_whole(inputs, first, masks=masks, probability=0.3)
    actual = run(function, inputs, first, masks=masks, probability=0.3)
    # explicit's softmax is in fp32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("masks", [(None, None), *MASKS.values()])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("function", [flash_attention, sdpa_attention, blocked_attention, TILED])
def test_last_queries_on_a_gpu(function, groups, masks):
    device, first = torch.device("cuda"), 40
    window, samples = masks
    starts = starts_of(samples or [[LENGTH]] * 2)[:, first:]
    documents = Documents.create(
        starts, device, shape=tuple(starts.shape), window=window, first_position=first
    )
    generator = torch.Generator().manual_seed(groups)
    inputs = [
        torch.randn(rows, 2, heads, 64, generator=generator).to(device, torch.bfloat16)
        for rows, heads in ((LENGTH - first, 8), (LENGTH, groups), (LENGTH, groups))
    ]
    weights = torch.randn(LENGTH - first, 2, 512, generator=generator).to(device)
    results = []
    for one, dtype in ((function, torch.bfloat16), (explicit_attention, torch.float32)):
        mine = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = one(*mine, None, documents)
        gradients = torch.autograd.grad((out * weights).sum(), mine)
        results.append([x.float() for x in (out, *gradients)])
    torch.testing.assert_close(*results, rtol=2e-2, atol=5e-2)
