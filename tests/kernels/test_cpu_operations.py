"""Operations by csrc/cpu_operations.cpp, with every kind of kernels that the processor runs, against fp64 and the references."""

import functools

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels import bias_dropout_residual as sums
from megatron.kernels import cpu_library, cpu_operations
from megatron.kernels.bias_gelu import bias_gelu
from megatron.kernels.cpu_cross_entropy import gradient_, row_statistics
from megatron.kernels.cpu_operations import (
    cpu_bias_dropout_residual,
    cpu_bias_dropout_residual_layer_norm,
    cpu_bias_gelu,
    cpu_layer_norm,
)
from megatron.kernels.cross_entropy import REFERENCE
from megatron.kernels.dropout import Dropout, drop_mask, keep_scale, token_keys
from megatron.kernels.layer_norm import layer_norm

OBSTACLE = cpu_library.obstacle("_cpu_operations")
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
KINDS = cpu_operations.kinds() if OBSTACLE is None else []
DTYPES = [torch.float32, torch.bfloat16]
# of rows and columns: one, none, more than a block of rows, widths that are no multiple of any vector
SHAPES = [(1, 1), (0, 16), (3, 7), (5, 64), (33, 83), (70, 200), (2100, 5)]
TOLERANCE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
}
EPSILON = 1e-2


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).mul(scale).to(dtype)


def dropout_for(rows, probability=0.3):
    """Keys as of rows samples of one token."""
    return Dropout(probability, token_keys(torch.arange(rows), torch.arange(1))[0])


def gelu_in_fp64(x, bias):
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def sum_in_fp64(x, bias, residual, dropout):
    x = x if bias is None else x + bias
    if dropout is not None:
        mask = drop_mask(dropout.row_keys, x.size(-1), dropout.probability)
        x = x * ~mask * keep_scale(dropout.probability)
    return x + residual


def norm_in_fp64(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, EPSILON)


def gradients(function, inputs, weights):
    """Give the results of a function, and gradients of its inputs; the first may be overwritten: it is no leaf."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
    results = function(leaves[0] * 1, *leaves[1:])
    results = results if isinstance(results, tuple) else (results,)
    present = [x for x in leaves if x is not None]
    return results, torch.autograd.grad(results, present, [w.to(results[0].dtype) for w in weights])


def check(function, formula, inputs, dtype, num_results=1):
    """Compare with a formula in fp64: results within rounding, gradients within it by the size of their sums."""
    rows = inputs[0].size(0)
    weights = [draw(*inputs[0].shape, dtype=dtype, seed=50 + i) for i in range(num_results)]
    found, found_gradients = gradients(function, inputs, weights)
    wide = [None if x is None else x.double() for x in inputs]
    expected, expected_gradients = gradients(formula, wide, weights)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, **TOLERANCE[dtype])
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        summed = max(rows, 1) ** 0.5 if one.dim() == 1 else 1.0
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(
            one.double(), other, rtol=tolerance["rtol"], atol=tolerance["atol"] * summed
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_gelu_and_its_gradients_are_those_of_fp64(kind, dtype, has_bias):
    for rows, columns in SHAPES:
        bias = draw(columns, dtype=dtype, seed=1) if has_bias else None
        x = draw(rows, columns, dtype=dtype, scale=3.0)
        check(functools.partial(cpu_bias_gelu, kind=kind), gelu_in_fp64, (x, bias), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_gelu_holds_from_end_to_end(kind):
    x = torch.cat(
        [torch.linspace(-20, 20, 4001), torch.tensor([0.0, -1e4, 1e4, -1e15, 1e15, -1e30, 1e30])]
    )
    weights = (torch.ones_like(x),)
    function = functools.partial(cpu_bias_gelu, bias=None, kind=kind)
    (out,), _ = gradients(function, (x,), weights)
    expected = F.gelu(x.double(), approximate="tanh").float()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    moderate = x.abs() < 1e18  # their squares are in fp32
    _, (gradient,) = gradients(function, (x[moderate],), (weights[0][moderate],))
    _, (expected,) = gradients(
        functools.partial(gelu_in_fp64, bias=None), (x[moderate].double(),), (weights[0][moderate],)
    )
    torch.testing.assert_close(gradient, expected.float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_sum_and_norm_and_their_gradients_are_those_of_fp64(kind, dtype, drops, has_bias):
    for rows, columns in SHAPES:
        dropout = dropout_for(rows) if drops else None
        x, residual = draw(rows, columns, dtype=dtype), draw(rows, columns, dtype=dtype, seed=1)
        bias = draw(columns, dtype=dtype, seed=2) if has_bias else None
        weight, norm_bias = (draw(columns, dtype=dtype, seed=seed) for seed in (3, 4))

        def formula(x, bias, residual, weight, norm_bias, dropout=dropout):
            total = sum_in_fp64(x, bias, residual, dropout)
            # the norm is of what is stored
            stored = total + (total.to(dtype).double() - total).detach()
            return total, norm_in_fp64(stored, weight, norm_bias)

        options = {"dropout": dropout, "kind": kind}
        expected = functools.partial(sum_in_fp64, dropout=dropout)
        check(functools.partial(add, **options), expected, (x, bias, residual), dtype)
        function = functools.partial(add_and_normalize, **options)
        check(function, formula, (x, bias, residual, weight, norm_bias), dtype, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_and_its_gradients_are_those_of_fp64(kind, dtype):
    for rows, columns in SHAPES:
        weight, bias = draw(columns, dtype=dtype, seed=1), draw(columns, dtype=dtype, seed=2)
        x = draw(rows, columns, dtype=dtype, scale=2.0) + 1
        check(functools.partial(normalize, kind=kind), norm_in_fp64, (x, weight, bias), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("columns", [1, 6, 83, 256])
def test_the_same_elements_are_dropped_as_by_the_reference(kind, probability, columns):
    dropout = dropout_for(9, probability)
    x, residual = torch.ones(9, columns), torch.zeros(9, columns)
    expected = sums.bias_dropout_residual(x.clone(), None, residual, dropout)
    out = cpu_bias_dropout_residual(
        x.clone().requires_grad_() * 1, None, residual, dropout, kind=kind
    )
    assert torch.equal(out, expected)
    (dx,) = torch.autograd.grad(
        cpu_bias_dropout_residual(
            (leaf := x.clone().requires_grad_()) * 1, None, residual, dropout, kind=kind
        ).sum(),
        leaf,
    )
    assert torch.equal(dx, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_a_sum_is_the_bits_of_the_norm_alone(kind, dtype):
    """Backward computes a norm again by the other function (--recompute-modules layernorm)."""
    x, residual = draw(9, 83, dtype=dtype), draw(9, 83, dtype=dtype, seed=1)
    bias, weight, norm_bias = (draw(83, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    total, normed = cpu_bias_dropout_residual_layer_norm(
        x, bias, residual, None, weight, norm_bias, EPSILON, kind=kind
    )
    assert torch.equal(cpu_layer_norm(total, weight, norm_bias, EPSILON, kind=kind), normed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, width, num_valid", [(1, 1, 1), (0, 9, 9), (13, 301, 290), (40, 3, 0), (7, 1024, 1024)]
)
def test_cross_entropy_is_that_of_fp64(kind, dtype, rows, width, num_valid):
    wide = draw(rows, width + 5, dtype=dtype, scale=3.0)
    logits = wide[:, 2 : width + 2]  # rows that are apart
    generator = torch.Generator().manual_seed(0)
    columns = torch.randint(0, max(num_valid, 1), (rows,), generator=generator)
    columns[::5] = -1
    if num_valid == 0:
        columns.fill_(-1)
    scale = torch.rand(rows, generator=generator)
    x = logits.double()[:, :num_valid].requires_grad_()
    expected = torch.logsumexp(x, dim=1)
    picked = x.gather(1, columns.clamp(min=0)[:, None])[:, 0] if num_valid else torch.zeros(rows)
    picked = picked * (columns >= 0)
    ((expected - picked) * scale).sum().backward() if num_valid else None
    found = row_statistics(logits, columns, num_valid, kind=kind)
    assert [one.dtype for one in found] == [torch.float32] * 2
    torch.testing.assert_close(found[0].double(), expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1].double(), picked.detach().double(), rtol=0, atol=0)
    around = wide.clone()
    out = gradient_(logits, columns, num_valid, found[0], scale, kind=kind)
    assert out.data_ptr() == logits.data_ptr()
    gradient = x.grad if num_valid else torch.zeros(rows, 0)
    expected = F.pad(gradient, (0, width - num_valid)).double()
    rtol = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-7)
    for end in (slice(0, 2), slice(width + 2, None)):
        assert torch.equal(wide[:, end], around[:, end])


@pytest.mark.parametrize("kind", KINDS)
def test_large_and_missing_logits_are_as_by_the_reference(kind):
    infinity = float("inf")
    logits = torch.full((5, 100), 1.0)
    logits[0], logits[1] = 300.0, -3e38
    logits[2, :99], logits[2, 99] = -infinity, 2.0
    logits[3, 50], logits[4, 7] = float("nan"), infinity
    columns, ones = torch.tensor([0, 1, 99, 3, 4]), torch.ones(5)
    expected, _ = REFERENCE.row_statistics(logits, columns, 100)
    found, _ = row_statistics(logits, columns, 100, kind=kind)
    torch.testing.assert_close(found, expected, equal_nan=True)
    gradient = gradient_(logits.clone(), columns, 100, expected, ones, kind=kind)
    expected = REFERENCE.gradient_(logits, columns, 100, expected, ones)
    torch.testing.assert_close(gradient, expected, equal_nan=True)
    assert (gradient[2] == 0).all()


def add(x, bias, residual, *, dropout, kind):
    return cpu_bias_dropout_residual(x, bias, residual, dropout, kind=kind)


def add_and_normalize(x, bias, residual, weight, norm_bias, *, dropout, kind):
    return cpu_bias_dropout_residual_layer_norm(
        x, bias, residual, dropout, weight, norm_bias, EPSILON, kind=kind
    )


def normalize(x, weight, bias, *, kind):
    return cpu_layer_norm(x, weight, bias, EPSILON, kind=kind)


def everything(dtype, kind):
    """Run all operations and give all that they compute."""
    rows, columns = 300, 203
    x, residual = draw(rows, columns, dtype=dtype), draw(rows, columns, dtype=dtype, seed=1)
    bias, weight, norm_bias = (draw(columns, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    both = (residual, x)
    results = [
        *gradients(functools.partial(cpu_bias_gelu, kind=kind), (x, bias), both[:1]),
        *gradients(functools.partial(normalize, kind=kind), (x, weight, norm_bias), both[:1]),
    ]
    for dropout in (None, dropout_for(rows)):
        options = {"dropout": dropout, "kind": kind}
        inputs = (x, bias, residual)
        results += gradients(functools.partial(add, **options), inputs, both[:1])
        inputs = (*inputs, weight, norm_bias)
        results += gradients(functools.partial(add_and_normalize, **options), inputs, both)
    labels = torch.arange(rows) % columns
    statistics = row_statistics(x, labels, columns, kind=kind)
    gradient = gradient_(x.clone(), labels, columns, statistics[0], torch.ones(rows), kind=kind)
    return [one.detach() for group in (*results, statistics, (gradient,)) for one in group]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(kind, dtype):
    expected = everything(dtype, kind)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = everything(dtype, kind)
    finally:
        torch.set_num_threads(num_threads)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_get_lost(kind, value):
    x, vector = draw(3, 40), torch.ones(40)
    x[1, 20] = x[2, 39] = value
    zeros = torch.zeros_like(x)
    for ours, reference in [
        (cpu_bias_gelu(x, None, kind=kind), bias_gelu(x, None)),
        (cpu_bias_dropout_residual(x.clone(), vector, zeros, None, kind=kind), x + vector),
        (
            cpu_layer_norm(x, vector, vector, EPSILON, kind=kind),
            layer_norm(x, vector, vector, EPSILON),
        ),
    ]:
        torch.testing.assert_close(ours, reference, equal_nan=True)


def test_other_dtypes_and_mixed_ones_go_to_the_reference():
    half, vector = draw(3, 8).half(), torch.ones(8)
    torch.testing.assert_close(cpu_bias_gelu(half, None), bias_gelu(half.clone(), None))
    mixed = draw(3, 8, dtype=torch.bfloat16)
    out = cpu_bias_dropout_residual(mixed.clone(), None, vector.expand(3, 8).half(), None)
    assert torch.equal(out, mixed + 1)
    apart = draw(3, 16)[:, ::2]
    torch.testing.assert_close(
        cpu_layer_norm(apart, vector, vector, EPSILON), layer_norm(apart, vector, vector, EPSILON)
    )


def test_what_does_not_fit_is_an_error():
    x = draw(3, 8)
    with pytest.raises(AssertionError):
        cpu_bias_gelu(x, torch.ones(9))
    with pytest.raises(AssertionError):
        cpu_bias_dropout_residual(x, None, draw(4, 8), None)
    with pytest.raises(AssertionError):
        cpu_bias_dropout_residual(x, None, x, dropout_for(2))
    with pytest.raises(AssertionError):
        cpu_bias_dropout_residual(x, None, x, Dropout(0.3, torch.zeros(3, dtype=torch.int32)))
    three, scale = torch.tensor([0, 7, 1]), torch.ones(3)
    for columns in (three[:2], three.int()):
        with pytest.raises(AssertionError):
            row_statistics(x, columns, 8)
    for numbers in ((scale[:2], scale), (scale, scale.double())):
        with pytest.raises(AssertionError):
            gradient_(x, three, 8, *numbers)
    with pytest.raises(IndexError, match="column"):
        row_statistics(x, torch.tensor([0, 8, 1]), 8)
    with pytest.raises(ValueError, match="does not run avx1024"):
        cpu_bias_gelu(x, None, kind="avx1024")


def test_a_sum_overwrites_its_product_but_not_a_view():
    x, residual, vector = draw(3, 8), draw(3, 8, seed=1), torch.ones(8)
    assert cpu_bias_dropout_residual(x, None, residual, None) is x
    whole = draw(2, 3, 8).requires_grad_() * 1
    total, _ = cpu_bias_dropout_residual_layer_norm(
        whole[0], None, residual, None, vector, vector, EPSILON
    )
    total.sum().backward()
    assert total._base is None
