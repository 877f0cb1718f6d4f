"""8-bit products against the same product of the rounded numbers in fp64."""

import pytest
import torch

from megatron.kernels.fp8_product import FORWARD, GRADIENT, fp8_product, quantize


def rounded(x, dtype):
    eight, scale = quantize(x.detach(), dtype)
    return eight.double() * scale.double()


@pytest.mark.parametrize("shape", [(6, 32), (5, 3, 32)])
def test_product_and_gradients_are_those_of_the_rounded_numbers(shape):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator) * 3).bfloat16().requires_grad_()
    weight = (torch.randn(48, 32, generator=generator) / 50).bfloat16().requires_grad_()
    bias = torch.randn(48, generator=generator).bfloat16().requires_grad_()
    grad = (torch.randn(*shape[:-1], 48, generator=generator) * 1e-4).bfloat16()
    out = fp8_product(x, weight, bias)
    out.backward(grad)

    product = rounded(x, FORWARD) @ rounded(weight, FORWARD).t() + bias.double()
    torch.testing.assert_close(out.double(), product, rtol=2e-2, atol=2e-2)
    grad_x = rounded(grad, GRADIENT) @ rounded(weight, FORWARD)
    torch.testing.assert_close(x.grad.double(), grad_x, rtol=2e-2, atol=1e-6)
    rows = grad.flatten(0, -2).double()
    grad_weight = rows.t() @ x.detach().flatten(0, -2).double()  # not rounded
    torch.testing.assert_close(weight.grad.double(), grad_weight, rtol=2e-2, atol=1e-5)
    torch.testing.assert_close(bias.grad.double(), rows.sum(0), rtol=2e-2, atol=1e-5)


def test_the_largest_number_is_the_largest_of_the_format():
    x = torch.tensor([[1e-7, -3e-6, 2e-6]])
    eight, scale = quantize(x, FORWARD)
    assert eight.float().abs().max() == torch.finfo(FORWARD).max
    torch.testing.assert_close(eight.float() * scale, x, rtol=2**-4, atol=0)


def test_zeros_stay_zeros_and_what_is_not_finite_shows():
    zeros = torch.zeros(2, 32, dtype=torch.bfloat16)
    weight = torch.ones(16, 32, dtype=torch.bfloat16)
    assert not fp8_product(zeros, weight).any()
    zeros[0, 0] = float("inf")
    assert not fp8_product(zeros, weight)[0].isfinite().all()


def test_what_it_gives_may_be_overwritten_as_a_product_of_the_library_may():
    x, weight = torch.randn(4, 3, 32).bfloat16().requires_grad_(), torch.randn(16, 32).bfloat16()
    out = fp8_product(x, weight)
    assert not out._is_view()  # fully_shard and recomputation hang hooks on it
    out.add_(1.0).sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_a_cpu_gives():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 256, generator=generator).bfloat16()
    weight = torch.randn(512, 256, generator=generator).bfloat16()
    grad = torch.randn(96, 512, generator=generator).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        tensors = [one.detach().to(device).requires_grad_() for one in (x, weight)]
        out = fp8_product(*tensors)
        out.backward(grad.to(device))
        results.append([one.float().cpu() for one in (out, *(t.grad for t in tensors))])
    for cpu, gpu in zip(*results, strict=True):
        assert (gpu - cpu).norm() < 1e-2 * cpu.norm()
