"""The product that can hand its weight's gradient to a sum, against F.linear and autograd."""

import pytest
import torch
import torch.nn.functional as F

from megatron.kernels.accumulate import add_product_
from megatron.kernels.fp8_product import fp8_product
from megatron.kernels.linear_product import linear_product

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Sum:
    """A sum in fp32 that takes gradients, or says that it does not."""

    def __init__(self, weight, *, is_open=True):
        self.total, self.is_open = torch.zeros_like(weight, dtype=torch.float32), is_open

    def add(self, grad, x):
        if self.is_open:
            add_product_(self.total, grad.t(), x)
        return self.is_open


def leaves(shape, device="cpu", dtype=torch.bfloat16):
    """Give x, weight and bias with values of their own."""
    generator = torch.Generator().manual_seed(3)
    shapes = (shape, (48, shape[-1]), (48,))
    return [
        torch.randn(one, generator=generator).to(device, dtype).requires_grad_() for one in shapes
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 32), (5, 3, 32), (5, 1, 32)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_sum_takes_the_weights_gradient_and_no_other(device, dtype, shape, has_bias):
    ours, theirs = leaves(shape, device, dtype), leaves(shape, device, dtype)
    if not has_bias:
        ours[2] = theirs[2] = None
    gradient_sum = Sum(ours[1])
    out, expected = linear_product(*ours, gradient_sum), F.linear(*theirs)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for tensor in (out, expected):
        tensor.backward(grad, retain_graph=True)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype != torch.float32 else {}
    assert ours[1].grad is None
    for mine, other in zip(ours[::2], theirs[::2], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad, other.grad, **tolerance)
    rows = theirs[0].detach().flatten(0, -2).double()
    expected_sum = grad.flatten(0, -2).double().t() @ rows
    torch.testing.assert_close(gradient_sum.total.double(), expected_sum, rtol=1e-5, atol=1e-4)
    out.backward(grad)
    torch.testing.assert_close(gradient_sum.total.double(), 2 * expected_sum, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("product", [linear_product, fp8_product])
def test_what_a_sum_does_not_take_autograd_gets(product):
    ours, theirs = leaves((5, 3, 32)), leaves((5, 3, 32))
    gradient_sum = Sum(ours[1], is_open=False)
    product(*ours, gradient_sum).float().square().sum().backward()
    product(*theirs, None).float().square().sum().backward()
    assert not gradient_sum.total.any()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_an_8_bit_product_adds_its_weights_gradient_in_full():
    x, weight, bias = leaves((5, 3, 32))
    gradient_sum = Sum(weight)
    out = fp8_product(x, weight, bias, gradient_sum)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected = grad.flatten(0, -2).double().t() @ x.detach().flatten(0, -2).double()
    assert weight.grad is None
    torch.testing.assert_close(gradient_sum.total.double(), expected, rtol=1e-5, atol=1e-4)


def test_what_it_gives_may_be_overwritten_as_a_product_of_the_library_may():
    x, weight, bias = leaves((4, 3, 32))
    gradient_sum = Sum(weight)
    out = linear_product(x, weight, bias, gradient_sum)
    assert not out._is_view()  # fully_shard and recomputation hang hooks on it
    out.add_(1.0).sum().backward()
    assert x.grad is not None and x.grad.any() and gradient_sum.total.any()
