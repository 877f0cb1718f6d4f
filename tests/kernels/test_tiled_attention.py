"""Attention by csrc/cpu_attention.cpp, with every kind of kernels that the processor runs, against the reference in fp64."""

import pytest
import torch

from megatron.kernels import cpu_library
from megatron.kernels.attention import AttentionDropout, explicit_attention
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import token_keys
from megatron.kernels.tiled_attention import kernel, tiled_attention

OBSTACLE = cpu_library.obstacle("_cpu_attention")
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
KINDS = kernel.kinds() if OBSTACLE is None else []
# relative, of whole tensors: numbers in bf16 are 2^-9 apart, half of that on average less
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def draw(s, b, n, g, d, dtype=torch.float32, num_queries=None):
    """Queries, and keys and values as views into one product, as a layer makes them."""
    query = normal(num_queries or s, b, n, d).to(dtype).requires_grad_()
    return query, normal(s, b, g, 2, d, seed=1).to(dtype).requires_grad_()


def attend(function, query, key_value, *what, **options):
    """The output, and gradients of queries and of keys and values."""
    out = function(query, *key_value.unbind(3), *what, **options)
    weights = normal(*out.shape, seed=2).bfloat16().to(out.dtype)
    return out, *torch.autograd.grad(out, (query, key_value), weights)


def assert_near(results, query, key_value, *what, times=1):
    wide = [x.detach().double().requires_grad_() for x in (query, key_value)]
    for mine, exact in zip(results, attend(explicit_attention, *wide, *what), strict=False):
        size = exact.norm().clamp(min=0.1 * exact.numel() ** 0.5)
        assert (mine.double() - exact).norm() < times * ERRORS[query.dtype] * size


def dropout_of(s, b, probability=0.3):
    return AttentionDropout(probability, token_keys(torch.arange(b), torch.arange(s)), 3, seed=0)


SHAPES = [  # s, b, n, g, d
    (9, 1, 1, 1, 8),
    (70, 2, 3, 1, 64),
    (130, 1, 4, 2, 40),  # no whole panel of head's numbers
    (300, 2, 12, 1, 64),
    (257, 1, 3, 3, 33),  # an odd number of them, which leaves half a pair of bf16
    (33, 1, 48, 1, 128),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_reference(kind, dtype, dropout, shape):
    query, key_value = draw(*shape, dtype)
    keyed = dropout_of(*shape[:2]) if dropout else None
    results = attend(tiled_attention, query, key_value, keyed, kind=kind)
    assert all(x.dtype == dtype for x in results)
    assert_near(results, query, key_value, keyed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_later_queries_see_documents_and_windows(kind, dtype):
    """Queries from the 150th key on, in documents that begin among them or before, over several tiles of keys."""
    query, key_value = draw(350, 2, 6, 2, 16, dtype, num_queries=200)
    starts = torch.tensor([[0] * 70 + [220] * 130, [149] * 1 + [151] * 199])
    documents = Documents(starts, CPU, window=170, first_position=150)
    keyed = dropout_of(200, 2)
    results = attend(tiled_attention, query, key_value, keyed, documents, kind=kind)
    assert_near(results, query, key_value, keyed, documents)
    assert results[2][:149, 1].count_nonzero() == 0  # what nobody sees


def test_heads_that_do_not_lie_side_by_side_are_copied():
    query, key_value = draw(40, 2, 4, 4, 8)
    expected = attend(tiled_attention, query, key_value, None)
    turned = [
        x.detach().transpose(-1, -2).contiguous().transpose(-1, -2) for x in (query, key_value)
    ]
    assert turned[0].stride(3) != 1
    actual = attend(tiled_attention, *(x.requires_grad_() for x in turned), None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_head_that_is_repeated_without_a_copy_gets_the_sum_of_its_gradients():
    query, numbers = normal(1, 3, 2, 4), normal(3, 2, 4).requires_grad_()  # b, keys and values, d
    key, value = (
        x.as_strided((1, 3, 2, 4), (1, 8, 0, 1), x.storage_offset()) for x in numbers.unbind(1)
    )
    tiled_attention(query, key, value, None).sum().backward()
    expected = torch.tensor([0.0, 2.0]).view(2, 1).expand(3, 2, 4)
    torch.testing.assert_close(numbers.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 1, 12, 1, 64), (90, 2, 3, 3, 16)])
def test_the_number_of_threads_changes_no_bit(kind, shape):
    query, key_value = draw(*shape, torch.bfloat16)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                attend(tiled_attention, query, key_value, dropout_of(*shape[:2]), kind=kind)
            )
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_large_scores_neither_overflow_nor_lose_the_highest(kind, dtype):
    query, key_value = draw(140, 1, 4, 1, 32, dtype)
    query = (query.detach() * 200).requires_grad_()
    results = attend(tiled_attention, query, key_value, None, kind=kind)
    assert_near(results[:1], query, key_value, None, times=10)  # scores have so many digits fewer
    assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_those_that_see_it_and_no_other(kind, bad):
    query, key_value = draw(140, 1, 2, 1, 32)
    with torch.no_grad():
        key_value[100, 0, 0, 0, 5] = bad  # a key
    out = tiled_attention(query, *key_value.unbind(3), None, kind=kind)
    assert out[:100].isfinite().all()
    expected = explicit_attention(query, *key_value.unbind(3), None)
    assert torch.equal(out.isnan(), expected.isnan()) and out.isnan().any()


def test_fp16_is_computed_in_fp32_and_fp64_by_the_reference():
    query, key_value = draw(50, 1, 4, 1, 16, torch.float16)
    out, *grads = attend(tiled_attention, query, key_value, None)
    wide = [x.detach().float().requires_grad_() for x in (query, key_value)]
    exact, *exact_grads = attend(tiled_attention, *wide, None)
    assert torch.equal(out, exact.half())
    for grad, wide_grad in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(grad.float(), wide_grad, rtol=2e-3, atol=2e-3)
    query, key_value = draw(50, 1, 4, 1, 16, torch.float64)
    out = tiled_attention(query, *key_value.unbind(3), None)
    assert torch.equal(out, explicit_attention(query, *key_value.unbind(3), None))


def test_backward_keeps_the_inputs_the_output_and_a_number_for_each_query():
    query, key_value = draw(64, 1, 4, 1, 32, torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = tiled_attention(query, *key_value.unbind(3), dropout_of(64, 1))
    storages = {x.untyped_storage().data_ptr() for x in kept}
    known = {x.untyped_storage().data_ptr() for x in (query, key_value, out)}
    (log_sums,) = storages - known
    assert known < storages and sum(x.numel() for x in kept if x.data_ptr() == log_sums) == 4 * 64


def test_second_derivatives_are_refused():
    query, key_value = draw(9, 1, 2, 1, 8)
    out = tiled_attention(query, *key_value.unbind(3), None)
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad.sum() + query.square().sum()).backward()


def test_an_output_that_was_changed_in_place_ends_backward():
    """It is not a view, which autograd lets no one change; but its old numbers are kept for the gradient."""
    query, key_value = draw(9, 1, 2, 1, 8)
    out = tiled_attention(query, *key_value.unbind(3), None).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (normal(9, 2, 1, 8).bfloat16(), normal(9, 2, 1, 8)),
        (normal(9, 2, 1, 8), normal(9, 2, 1, 8).bfloat16()),
        (normal(9, 1, 1, 8), normal(9, 1, 1, 8)),  # fewer samples
        (normal(9, 2, 1, 8), normal(8, 2, 1, 8)),
        (normal(9, 2, 1, 4), normal(9, 2, 1, 4)),
    ],
)
def test_no_memory_is_read_that_is_not_the_inputs(key, value):
    with pytest.raises(AssertionError):
        tiled_attention(normal(9, 2, 1, 8), key, value, None)


@pytest.mark.parametrize("rows", [(8, 2), (9, 1)])
def test_keys_of_dropout_and_documents_are_those_of_the_queries(rows):
    positions, samples = rows
    query, key_value = draw(9, 2, 1, 1, 8)
    with pytest.raises(AssertionError):
        tiled_attention(query, *key_value.unbind(3), dropout_of(positions, samples))
    starts = torch.arange(positions).expand(samples, -1)
    documents = Documents.create(starts, CPU, shape=(samples, positions), window=None)
    if positions < 9:
        with pytest.raises(AssertionError):
            tiled_attention(query, *key_value.unbind(3), None, documents)


def test_tensors_of_the_meta_device_have_no_memory_to_read():
    query, key_value = draw(9, 2, 1, 1, 8)
    out = tiled_attention(query.to("meta"), *key_value.to("meta").unbind(3), None)
    assert out.is_meta and out.shape == (9, 2, 8)
