"""Sums in fp32 of what comes in fewer bits, on either device."""

import pytest
import torch

from megatron.kernels import cuda_library
from megatron.kernels.accumulate import accumulate_, add_product_

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 7, 1024, 300_001, 5_000_000])
def test_sum_is_that_of_fp32(device, dtype, first, size):
    if device == "cuda" and (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    generator = torch.Generator().manual_seed(size)
    total = torch.randn(size, generator=generator).to(device)
    gradient = torch.randn(size + 1, generator=generator).to(device, dtype)[first : first + size]
    expected = total + gradient.float()
    accumulate_(total, gradient)
    assert torch.equal(total, expected)


def test_operator_keeps_the_rules_of_torch_library():
    torch.library.opcheck(
        torch.ops.megatron.accumulate_.default,
        (torch.zeros(5), torch.ones(5, dtype=torch.bfloat16)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_added_in_fp32(device, dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in ((40, 33), (33, 24))
    )
    total = torch.full((40, 24), 1000.0, device=device)
    out = add_product_(total, left, right)
    assert out.data_ptr() == total.data_ptr()
    expected = 1000.0 + left.double() @ right.double()
    # a CPU rounds products of few bits; a sum of many such is what this is for
    tolerance = 1e-3 if dtype == torch.float32 or device == "cuda" else 0.1
    torch.testing.assert_close(total.double(), expected, rtol=0, atol=tolerance)
