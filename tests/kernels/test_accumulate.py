"""Products summed in fp32, of what comes in fewer bits, on either device."""

import pytest
import torch

from megatron.kernels.accumulate import add_product_, product_in_fp32

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def factors(device, dtype):
    """Give left [40, 33], not contiguous as a gradient that is turned, and right [33, 24]."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(33, width, generator=generator) for width in (40, 24))
    return left.to(device, dtype).t(), right.to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_added_in_fp32(device, dtype):
    left, right = factors(device, dtype)
    total = torch.full((40, 24), 1000.0, device=device)
    out = add_product_(total, left, right)
    assert out.data_ptr() == total.data_ptr()
    expected = 1000.0 + left.double() @ right.double()
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_in_fp32(device, dtype):
    left, right = factors(device, dtype)
    product = product_in_fp32(left, right)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), left.double() @ right.double(), rtol=0, atol=1e-4)
