"""Documents inside a sample, and windows: no kernel lets a token see what it must not, values and gradients."""

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
from tests.kernels.tiled import TILED

CPU = torch.device("cpu")
SAMPLES = {  # lengths of the documents of each sample
    "two samples cut differently": [[5, 1, 1, 9, 3], [19]],
    "documents of one token": [[1] * 19],
    "a boundary at either end": [[1, 17, 1], [18, 1], [1, 18]],
    "blocks that hold none, one and several boundaries": [[70, 3, 2, 75], [33, 100, 17]],
    "boundaries where blocks meet": [[64, 64, 22], [32, 96, 22]],
}


def starts_of(samples):
    """Lengths of documents -> the position at which the document of each token starts, [b, s]."""
    rows = []
    for lengths in samples:
        row = []
        for length in lengths:
            row += [len(row)] * length
        rows.append(row)
    return torch.tensor(rows)


def by_document(query, key, value, samples, window=None):
    """Attention of each document alone, head by head, in fp64."""
    s, b, n, d = query.shape
    out = torch.empty(s, b, n, d, dtype=query.dtype)
    for sample, lengths in enumerate(samples):
        begin = 0
        for length in lengths:
            here = slice(begin, begin + length)
            for head in range(n):
                group = head // (n // key.size(2))
                scores = query[here, sample, head] @ key[here, sample, group].T / d**0.5
                hidden = torch.ones(length, length).triu(1).bool()
                if window is not None:
                    hidden |= torch.ones(length, length).tril(-window).bool()
                probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                out[here, sample, head] = probabilities @ value[here, sample, group]
            begin += length
    return out.reshape(s, b, n * d)


def create(starts, window=None):
    return Documents.create(starts, CPU, shape=tuple(starts.shape), window=window)


def draw(samples, groups, dtype=torch.float64):
    """Queries, and keys and values as views into one product, as a layer makes them."""
    s, b = sum(samples[0]), len(samples)
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(s, b, 6, 5, generator=generator, dtype=torch.float64)
    key_value = torch.randn(s, b, groups, 2, 5, generator=generator, dtype=torch.float64)
    return query.to(dtype).requires_grad_(), key_value.to(dtype).requires_grad_()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("function", [explicit_attention, sdpa_attention, blocked_attention, TILED])
def test_each_document_is_as_if_alone(function, samples, groups):
    query, key_value = draw(samples, groups)
    expected = by_document(query, *key_value.unbind(3), samples)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (expected * weights).sum().backward()

    mine, shared = draw(samples, groups, torch.float32)
    actual = function(mine, *shared.unbind(3), None, Documents(starts_of(samples), CPU))
    assert actual.is_contiguous()
    (actual * weights).sum().backward()
    for one, other in ((actual, expected), (mine.grad, query.grad), (shared.grad, key_value.grad)):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


WINDOWED = [
    *((samples, 3) for samples in SAMPLES.values()),
    ([[150], [150]], 1),
    ([[150], [150]], 20),
    ([[150]], 64),
    ([[150], [150]], 149),
    ([[70, 3, 2, 75], [33, 100, 17]], 40),
]


@pytest.mark.parametrize("samples, window", WINDOWED)
@pytest.mark.parametrize("function", [explicit_attention, sdpa_attention, blocked_attention, TILED])
def test_window_ends_what_a_token_sees_of_its_document(function, samples, window):
    query, key_value = draw(samples, 2)
    expected = by_document(query, *key_value.unbind(3), samples, window)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (expected * weights).sum().backward()

    mine, shared = draw(samples, 2, torch.float32)
    documents = create(starts_of(samples), window)
    actual = function(mine, *shared.unbind(3), None, documents)
    (actual * weights).sum().backward()
    for one, other in ((actual, expected), (mine.grad, query.grad), (shared.grad, key_value.grad)):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_blocks_drop_what_the_reference_drops(samples, groups, window):
    query, key_value = draw(samples, groups)
    rows = token_keys(torch.arange(len(samples)), torch.arange(sum(samples[0])))
    dropout = AttentionDropout(0.3, rows, first_head=2, seed=0)
    documents = Documents(starts_of(samples), CPU, window)
    results = []
    for function in (blocked_attention, explicit_attention):
        out = function(query, *key_value.unbind(3), dropout, documents)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
        results.append((out, *torch.autograd.grad((out * weights).sum(), (query, key_value))))
    # explicit's softmax is in fp32
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_offsets_lay_the_samples_end_to_end(samples):
    documents = Documents(starts_of(samples), CPU)
    lengths = [length for sample in samples for length in sample]
    for packed in (documents.packed_queries, documents.packed_keys):
        assert packed.offsets.dtype == torch.int32
        assert packed.offsets.diff().tolist() == lengths
        assert packed.offsets[0] == 0
        assert packed.longest == max(lengths)


def test_keys_that_no_later_query_sees_are_laid_before_the_others():
    starts = starts_of([[5, 1, 1, 9, 3], [19], [8, 11]])
    documents = Documents(starts[:, 8:], CPU, first_position=8)
    # the rest of the fourth and the fifth document; the end of the only one; the whole of the second
    queries, keys = documents.packed_queries, documents.packed_keys
    assert queries.offsets.diff().tolist() == [0, 8, 3, 0, 11, 0, 11]
    assert keys.offsets.diff().tolist() == [7, 9, 3, 0, 19, 8, 11]
    assert (queries.longest, keys.longest) == (11, 19)


def test_samples_of_one_document_within_the_window_need_no_mask():
    whole = torch.zeros(2, 7, dtype=torch.int64)
    assert create(whole) is None
    assert create(whole, window=7) is None
    assert create(whole, window=6) is not None
    assert create(starts_of([[7], [6, 1]])) is not None
    without = Documents.create(None, CPU, shape=(2, 7), window=6)
    assert without is not None and torch.equal(without.mask, create(whole, window=6).mask)


def packed_attention(query, key, value, offsets, offsets_k, longest, longest_k, **options):
    """What torch's kernel for a GPU says it computes, of [tokens, heads, d]."""
    assert longest == offsets.diff().max() and longest_k == offsets_k.diff().max()
    before, after = options.pop("window_size")
    assert after == 0 and options.pop("enable_gqa", True)
    assert not options
    window = None if before == -1 else before + 1
    lengths, lengths_k = offsets.diff().tolist(), offsets_k.diff().tolist()
    packed = [query.split(lengths), key.split(lengths_k), value.split(lengths_k)]
    parts = []
    for one in zip(*packed, strict=True):
        num_queries, num_keys = len(one[0]), len(one[1])
        starts = torch.zeros(1, num_queries, dtype=torch.int64)
        whole = Documents.create(
            starts,
            CPU,
            shape=(1, num_queries),
            window=window,
            first_position=num_keys - num_queries,
        )
        if num_queries > 0:
            parts.append(explicit_attention(*(x.unsqueeze(1) for x in one), None, whole))
    return torch.cat(parts).view(query.shape)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_flash_is_handed_the_documents_one_after_another(monkeypatch, samples, window):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed_attention)
    query, key_value = draw(samples, 2, torch.float32)
    documents = Documents(starts_of(samples), CPU, window)
    actual = flash_attention(query, *key_value.unbind(3), None, documents)
    assert actual.is_contiguous()
    expected = explicit_attention(query, *key_value.unbind(3), None, documents)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("function", [flash_attention, sdpa_attention, blocked_attention, TILED])
def test_each_document_is_as_if_alone_on_a_gpu(function, groups, window):
    device = torch.device("cuda")
    starts = starts_of([[70, 3, 2, 181], [256]])
    generator = torch.Generator().manual_seed(groups)
    inputs = [
        torch.randn(256, 2, heads, 64, generator=generator).to(device, torch.bfloat16)
        for heads in (8, groups, groups)
    ]
    weights = torch.randn(256, 2, 512, generator=generator).to(device)
    results = []
    for one, dtype in ((function, torch.bfloat16), (explicit_attention, torch.float32)):
        mine = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = one(*mine, None, Documents(starts, device, window))
        gradients = torch.autograd.grad((out * weights).sum(), mine)
        results.append([x.float() for x in (out, *gradients)])
    torch.testing.assert_close(*results, rtol=2e-2, atol=5e-2)
