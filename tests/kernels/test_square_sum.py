"""The weighted sum of squares against fp64, over tensors of every size and dtype."""

import pytest
import torch

from megatron.kernels import cuda_library
from megatron.kernels.multi_tensor import CHUNK_SIZE
from megatron.kernels.square_sum import fused_square_sum, square_sum

SIZES = [5, 0, CHUNK_SIZE, CHUNK_SIZE + 1, 1, 3 * CHUNK_SIZE + 7, 0]


@pytest.fixture(
    params=[
        pytest.param((square_sum, "cpu"), id="torch"),
        pytest.param((square_sum, "cuda"), id="torch-gpu", marks=pytest.mark.gpu),
        pytest.param((fused_square_sum, "cuda"), id="fused", marks=pytest.mark.gpu),
    ]
)
def way(request):
    """A function, and its device."""
    if request.param[0] is fused_square_sum and (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    return request.param[0], torch.device(request.param[1])


def draw(device, dtypes):
    """Tensors that take the dtypes in turn, every second one between two 16-byte boundaries, and weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for i, size in enumerate(SIZES):
        values = torch.randn(size + 1, generator=generator)
        tensors.append(values.to(device, dtypes[i % len(dtypes)])[i % 2 :][:size])
    return tensors, [1.0 / (1 + i % 3) for i in range(len(SIZES))]


@pytest.mark.parametrize(
    "dtypes",
    [[torch.float32], [torch.bfloat16], [torch.float32, torch.bfloat16]],
    ids=["fp32", "bf16", "both"],
)
def test_sum_equals_fp64_and_two_runs_agree_in_every_bit(way, dtypes):
    function, device = way
    tensors, weights = draw(device, dtypes)
    total = function(tensors, weights, device)
    assert total.dtype == torch.float64 and total.shape == () and total.device.type == device.type
    expected = sum(
        weight * tensor.double().square().sum()
        for tensor, weight in zip(tensors, weights, strict=True)
    )
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    assert torch.equal(function(tensors, weights, device), total)


def test_nothing_sums_to_zero(way):
    function, device = way
    assert function([], [], device) == 0
    assert function([torch.empty(0, 3, device=device)], [1.0], device) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_sum(way, value):
    function, device = way
    tensors, weights = draw(device, [torch.float32])
    tensors[-2][-1] = value
    assert not function(tensors, weights, device).isfinite()
