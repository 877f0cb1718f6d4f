"""Softmax over what a query sees: against torch's on the CPU, the CUDA kernel against the CPU."""

import pytest
import torch
from torch import Tensor, library

from megatron.kernels.documents import Documents
from megatron.kernels.masked_softmax import fused_scaled_masked_softmax, scaled_masked_softmax

SCALE = 0.3
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-6},
    torch.float16: {"rtol": 2e-3, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-6},
}


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(shape[-1])
    return torch.randn(shape, generator=generator).mul(3).to(dtype).requires_grad_()


def first_keys_of(b: int, sq: int, sk: int, window: int | None) -> Tensor:
    """Those of documents of 1 to 40 tokens, other ones in each sample, whose last tokens are the queries."""
    generator = torch.Generator().manual_seed(sk)
    starts = torch.zeros(b, sk, dtype=torch.int64)
    for sample in range(b):
        begins = torch.rand(sk, generator=generator) < 0.05
        starts[sample] = torch.where(begins, torch.arange(sk), 0).cummax(dim=0).values
    documents = Documents(starts[:, sk - sq :], torch.device("cpu"), window, sk - sq)
    return documents.first_keys


def by_definition(scores: Tensor, first_keys: Tensor) -> Tensor:
    """Each row alone, over the keys that it sees."""
    b, n, sq, sk = scores.shape
    rows = []
    for sample in range(b):
        for head in range(n):
            for query in range(sq):
                first, end = first_keys[sample % len(first_keys), query], sk - sq + query + 1
                seen = torch.softmax(SCALE * scores[sample, head, query, first:end], dim=-1)
                rows.append(torch.nn.functional.pad(seen, (first, sk - end)))
    return torch.stack(rows).view(scores.shape)


MASKS = [  # samples that have first keys, window
    (0, None),
    (1, 3),
    (2, None),
    (2, 5),
]


@pytest.mark.parametrize("queries", [1, 6, 23])
@pytest.mark.parametrize("samples, window", MASKS)
@pytest.mark.parametrize("function", [scaled_masked_softmax, fused_scaled_masked_softmax])
def test_values_and_gradients_are_those_of_the_definition(function, samples, window, queries):
    scores = draw((2, 3, queries, 23))
    first_keys = first_keys_of(samples, queries, 23, window) if samples else None
    actual = function(scores, SCALE, first_keys)
    no_first = torch.zeros(1, queries, dtype=torch.int64)
    expected = by_definition(scores, no_first if first_keys is None else first_keys)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(actual == 0, expected == 0)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(x, scores, weights)[0] for x in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_a_query_that_sees_nothing_gets_zeros():
    scores = draw((1, 2, 4, 4))
    result = fused_scaled_masked_softmax(scores, SCALE, torch.tensor([[0, 2, 1, 9]]))
    assert not result[:, :, [1, 3]].any()
    assert not torch.autograd.grad(result.square().sum(), scores)[0].isnan().any()


@pytest.mark.parametrize("first_keys", [None, torch.tensor([[0, 1, 3], [0, 0, 2]])], ids=str)
def test_operators_keep_the_rules_of_torch_and_compile(first_keys):
    scores = draw((2, 2, 3, 5), torch.float32)
    softmax = torch.ops.megatron.scaled_masked_softmax.default
    library.opcheck(softmax, (scores, SCALE, first_keys))
    p = softmax(scores.detach(), SCALE, first_keys)
    backward = torch.ops.megatron.scaled_masked_softmax_backward.default
    library.opcheck(backward, (torch.randn_like(p), p, SCALE, first_keys))

    def run(scores: Tensor) -> Tensor:
        return fused_scaled_masked_softmax(2 * scores, SCALE, first_keys).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [(y, *torch.autograd.grad(y, scores)) for y in (run(scores), compiled(scores))]
    torch.testing.assert_close(*results)


GPU_SHAPES = {
    "one key": (2, 3, 1, 1),
    "a warp, odd": (2, 3, 77, 77),
    "a warp": (2, 3, 96, 96),
    "last queries": (2, 3, 40, 1000),
    "a block": (1, 2, 30, 2048),
    "8,192 keys": (1, 2, 17, 8192),
    "16,384 keys": (2, 1, 9, 16384),
    "16,385 keys": (2, 1, 9, 16385),
    "beyond registers": (1, 1, 3, 70000),
    "many rows": (2, 16, 512, 512),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("samples, window", [(0, None), (1, 300), (2, None)])
@pytest.mark.parametrize("shape", GPU_SHAPES.values(), ids=GPU_SHAPES)
def test_kernels_compute_what_the_cpu_does(shape, samples, window, dtype):
    b, _, sq, sk = shape
    scores = draw(shape, dtype).detach()
    first_keys = first_keys_of(min(samples, b), sq, sk, window) if samples else None
    first_on_gpu = None if first_keys is None else first_keys.cuda()
    expected = fused_scaled_masked_softmax(scores, SCALE, first_keys)
    actual = fused_scaled_masked_softmax(scores.cuda(), SCALE, first_on_gpu).cpu()
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    assert (
        torch.equal(actual == 0, expected == 0) or dtype == torch.float16
    )  # where p may underflow

    # backward of the same probabilities
    d_p = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    backward = torch.ops.megatron.scaled_masked_softmax_backward
    d_scores = backward(d_p, expected, SCALE, first_keys)
    on_gpu = backward(d_p.cuda(), expected.cuda(), SCALE, first_on_gpu).cpu()
    torch.testing.assert_close(on_gpu, d_scores, **TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernels_take_views_odd_addresses_and_no_rows(dtype):
    scores = draw((2, 3, 64, 64), dtype).detach().cuda()
    expected = fused_scaled_masked_softmax(scores, SCALE, None)
    strided = scores.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(fused_scaled_masked_softmax(strided, SCALE, None), expected)
    shifted = torch.cat([scores.new_zeros(1), scores.flatten()])[1:].view(scores.shape)
    actual = fused_scaled_masked_softmax(shifted, SCALE, None)
    torch.testing.assert_close(actual, expected, **TOLERANCE[dtype])
    assert fused_scaled_masked_softmax(scores[:0], SCALE, None).shape == (0, 3, 64, 64)


@pytest.mark.gpu
def test_kernels_give_zeros_to_a_query_that_sees_nothing():
    for keys in (64, 4096, 40001):
        scores = torch.randn(1, 1, 2, keys, device="cuda")
        first_keys = torch.tensor([[keys, 0]], device="cuda")
        result = fused_scaled_masked_softmax(scores.requires_grad_(), SCALE, first_keys)
        assert not result[0, 0, 0].any()
        assert not torch.autograd.grad(result, scores, result.detach())[0][0, 0, 0].any()


@pytest.mark.gpu
def test_kernels_take_more_than_two_to_the_31_scores():
    size = 46400  # squared: just above 2^31
    scores = torch.empty(1, 1, size, size, dtype=torch.bfloat16, device="cuda").normal_()
    whole = fused_scaled_masked_softmax(scores, SCALE, None)
    last = fused_scaled_masked_softmax(scores[:, :, -5:], SCALE, None)
    assert torch.equal(whole[:, :, -5:], last)
