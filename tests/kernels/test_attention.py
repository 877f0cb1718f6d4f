"""Every way to compute attention against one written out here, head by head, in fp64."""

import pytest
import torch

from megatron.kernels.attention import (
    AttentionDropout,
    explicit_attention,
    sdpa_attention,
)
from megatron.kernels.blocked_attention import blocked_attention
from megatron.kernels.dropout import token_keys
from megatron.kernels.flash_attention import flash_attention
from tests.kernels.tiled import TILED

FUNCTIONS = [
    explicit_attention,
    sdpa_attention,
    flash_attention,
    blocked_attention,
    TILED,
]
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2},
}


def by_definition(query, key, value):
    """[s, b, n, d] and [s, b, g, d] -> [s, b, n*d], one head of one sample at a time."""
    s, b, n, d = query.shape
    out = torch.empty(s, b, n, d, dtype=query.dtype)
    for sample in range(b):
        for head in range(n):
            group = head // (n // key.size(2))
            scores = query[:, sample, head] @ key[:, sample, group].T / d**0.5
            scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), float("-inf"))
            out[:, sample, head] = scores.softmax(-1) @ value[:, sample, group]
    return out.reshape(s, b, n * d)


def draw(groups, dtype=torch.float64):
    """Queries, and keys and values as views into one product, as a layer makes them."""
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(7, 2, 6, 5, generator=generator, dtype=torch.float64)
    key_value = torch.randn(7, 2, groups, 2, 5, generator=generator, dtype=torch.float64)
    return query.to(dtype).requires_grad_(), key_value.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_and_gradients_equal_the_definition(function, groups, dtype):
    query, key_value = draw(groups)
    expected = by_definition(query, *key_value.unbind(3))
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    (expected * weights).sum().backward()

    mine, shared = draw(groups, dtype)
    actual = function(mine, *shared.unbind(3), None)
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    (actual * weights).sum().backward()
    for one, other in ((actual, expected), (mine.grad, query.grad), (shared.grad, key_value.grad)):
        torch.testing.assert_close(one.double(), other, **TOLERANCE[dtype])


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_blocks_of_a_long_sequence_join_to_the_whole(groups, dropout):
    """Two blocks and a piece, with the dropout of the explicit path, in fp64."""
    s, b, n, d = 150, 2, 6, 4
    generator = torch.Generator().manual_seed(groups)
    inputs = [
        torch.randn(s, b, heads, d, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (n, groups, groups)
    ]
    weights = torch.randn(s, b, n * d, generator=generator, dtype=torch.float64)
    keyed = None
    if dropout:
        rows = token_keys(torch.arange(b), torch.arange(s))
        keyed = AttentionDropout(dropout, rows, 3, seed=0)
    results = []
    for function in (blocked_attention, explicit_attention):
        out = function(*inputs, keyed)
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    # explicit's softmax is in fp32
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def keyed(first_head, num_heads, seed=3):
    rows = token_keys(torch.arange(2), torch.arange(7))
    return AttentionDropout(0.4, rows, first_head, seed)


@pytest.mark.parametrize("function", [explicit_attention, blocked_attention, TILED])
def test_keyed_dropout_of_a_share_of_the_heads_is_that_of_all(function):
    query, key_value = draw(1, torch.float32)
    key, value = key_value.unbind(3)
    whole = function(query, key, value, keyed(0, 6)).view(7, 2, 6, 5)
    share = function(query[:, :, 2:4].contiguous(), key, value, keyed(2, 2))
    torch.testing.assert_close(share.view(7, 2, 2, 5), whole[:, :, 2:4])


@pytest.mark.parametrize("function", [explicit_attention, sdpa_attention, blocked_attention, TILED])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(function):
    """With values 1 each output is the sum of the kept probabilities, scaled: 1 on average."""
    query = torch.randn(64, 8, 6, 4, generator=torch.Generator().manual_seed(1))
    key, ones = torch.zeros(64, 8, 1, 4), torch.ones(64, 8, 1, 4)
    rows = token_keys(torch.arange(8), torch.arange(64))
    out = function(query, key, ones, AttentionDropout(0.4, rows, 0, 3)).view(64, 8, 6, 4)[..., 0]
    # position 0 attends to itself alone, so it is kept or dropped as a whole
    assert out[0].unique().tolist() == pytest.approx([0.0, 1 / 0.6], rel=1e-4)
    assert abs((out[0] == 0).float().mean().item() - 0.4) < 4 * (0.24 / 48) ** 0.5
    # position i averages i + 1 kept or dropped ones of variance 0.4/0.6
    deviation = (0.4 / 0.6 / torch.arange(1, 65) / 48).sqrt()
    assert ((out.mean(dim=(1, 2)) - 1).abs() < 4.5 * deviation).all()


def test_fused_dropout_follows_its_seed_and_leaves_the_generator_alone():
    query, key_value = draw(1, torch.float32)
    key, value = key_value.unbind(3)
    state = torch.get_rng_state()
    first = sdpa_attention(query, key, value, keyed(0, 6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(sdpa_attention(query, key, value, keyed(0, 6)), first)
    assert not torch.equal(sdpa_attention(query, key, value, keyed(0, 6, seed=4)), first)
