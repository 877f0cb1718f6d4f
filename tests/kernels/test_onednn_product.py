"""oneDNN's product against F.linear, autograd and fp64, and where it is chosen."""

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels.onednn_product import obstacle, onednn_product

pytestmark = pytest.mark.skipif(
    obstacle("cpu", torch.float32) is not None, reason="torch is built without oneDNN"
)


def leaves(shape, out=48):
    """Give x, weight and bias with values of their own."""
    generator = torch.Generator().manual_seed(3)
    shapes = (shape, (out, shape[-1]), (out,))
    return [torch.randn(one, generator=generator).requires_grad_() for one in shapes]


@pytest.mark.parametrize("shape", [(6, 32), (5, 3, 33), (1, 1, 7), (5, 1, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_gives_the_librarys_product_and_gradients(shape, has_bias):
    ours, theirs = leaves(shape), leaves(shape)
    if not has_bias:
        ours[2] = theirs[2] = None
    out, expected = onednn_product(*ours), F.linear(*theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_factors_in_any_layout_give_the_same():
    x, weight = torch.randn(6, 4, 32)[::2, :, ::2], torch.randn(16, 20)[:, ::2].t()
    torch.testing.assert_close(onednn_product(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_the_librarys(dtype):
    x, weight, bias = (one.detach().to(dtype) for one in leaves((5, 3, 32)))
    assert torch.equal(onednn_product(x, weight, bias), F.linear(x, weight, bias))


def relative_error(result, expected):
    return ((result.double() - expected).norm() / expected.norm()).item()


def test_it_adds_up_in_fp32():
    x, weight, _ = (one.detach() for one in leaves((64, 1024), out=96))
    exact = x.double() @ weight.double().t()
    assert relative_error(onednn_product(x, weight), exact) < 2e-6  # of TF32: 3e-4, of bf16: 2e-3


def test_a_sum_takes_the_weights_gradient_and_what_it_leaves_autograd_gets():
    class Sum:
        def __init__(self, is_open):
            self.total, self.is_open = None, is_open

        def add(self, grad, x):
            self.total = grad.t() @ x
            return self.is_open

    (x, weight, bias), is_open, is_shut = leaves((5, 3, 32)), Sum(True), Sum(False)
    onednn_product(x, weight, bias, is_open).square().sum().backward()
    assert weight.grad is None
    onednn_product(x, weight, bias, is_shut).square().sum().backward()
    torch.testing.assert_close(weight.grad, is_open.total)


def test_what_it_gives_may_be_overwritten():
    x, weight, bias = leaves((4, 3, 32))
    out = onednn_product(x, weight, bias)
    assert not out._is_view()  # fully_shard and recomputation hang hooks on it
    out.add_(1.0).sum().backward()
    assert x.grad is not None and x.grad.any()
