"""The CUDA kernels, compiled for a CPU and run thread by thread, against PyTorch's formulas. No GPU is needed.

What only a GPU shows is in the tests marked gpu. `test_adamw` and `test_cross_entropy` run theirs in this way too; the sum
of squares is left out, whose thousand blocks are many for one CPU.
"""

import pytest
import torch

from megatron.kernels.masked_softmax import fused_scaled_masked_softmax
from tests.kernels import test_fused as fused
from tests.kernels import test_masked_softmax as softmax

# rows of a warp and of a block; of whole vectors, of an odd number of elements, and of more than registers keep
LAYERS = {
    "one": ((1, 1, 1), torch.bfloat16),
    "odd": ((5, 3, 7), torch.float32),
    "whole": ((5, 3, 104), torch.float16),
    "many rows": ((300, 1, 8), torch.bfloat16),
    "a block a row": ((4, 1, 2047), torch.bfloat16),
    "wide": ((2, 1, 4101), torch.bfloat16),
}
SCORES = {
    "one": (1, 1, 1, 1),
    "a warp a row": (2, 3, 17, 40),
    "odd": (2, 3, 9, 77),
    "a block a row": (1, 2, 3, 2048),
    "wide": (1, 1, 2, 4101),
}


def wider(x: torch.Tensor) -> torch.Tensor:
    """fp32 in fp64, for the formulas; half precision as it is: a sum is rounded before it is normalised."""
    if x.dtype != torch.float32:
        return x
    return x.detach().double().requires_grad_()


@fused.every_case
@pytest.mark.parametrize("shape, dtype", LAYERS.values(), ids=LAYERS)
def test_operations_of_a_layer_compute_what_their_formulas_do(
    request, shape, dtype, operation, given
):
    inputs = fused.draw(given, shape, dtype)
    wide = {name: wider(x) for name, x in inputs.items()}
    expected = fused.compute(fused.FUSED, operation, wide)
    request.getfixturevalue("cuda_on_cpu")
    actual = fused.compute(fused.FUSED, operation, inputs)
    fused.assert_near(actual, expected, dtype)


@fused.every_case
@pytest.mark.parametrize("view", [fused.strided, fused.shifted])
def test_operations_take_views_and_odd_addresses(cuda_on_cpu, view, operation, given):
    inputs = fused.draw(given, (5, 3, 64), torch.bfloat16)
    viewed = {name: view(x.detach()).requires_grad_(x.requires_grad) for name, x in inputs.items()}
    expected = fused.compute(fused.FUSED, operation, inputs)
    fused.assert_near(fused.compute(fused.FUSED, operation, viewed), expected, torch.bfloat16)


@fused.every_case
def test_operations_take_no_rows(cuda_on_cpu, operation, given):
    inputs = fused.draw(given, (0, 3, 64), torch.bfloat16)
    for name, x in fused.compute(fused.FUSED, operation, inputs).items():
        assert x.numel() == 0 or not x.any(), name


@pytest.mark.parametrize("dtype", softmax.TOLERANCE, ids=str)
@pytest.mark.parametrize("samples, window", [(0, None), (1, 30), (2, None)])
@pytest.mark.parametrize("shape", SCORES.values(), ids=SCORES)
def test_softmax_computes_what_its_formula_does(request, shape, samples, window, dtype):
    b, _, sq, sk = shape
    first_keys = softmax.first_keys_of(min(samples, b), sq, sk, window) if samples else None
    scores, d_p = softmax.draw(shape, dtype).detach(), softmax.draw(shape, dtype).detach()
    backward = torch.ops.megatron.scaled_masked_softmax_backward
    p = fused_scaled_masked_softmax(scores, softmax.SCALE, first_keys)
    expected = p, backward(d_p, p, softmax.SCALE, first_keys)
    request.getfixturevalue("cuda_on_cpu")
    actual = (
        fused_scaled_masked_softmax(scores, softmax.SCALE, first_keys),
        backward(d_p, p, softmax.SCALE, first_keys),
    )
    torch.testing.assert_close(actual, expected, **softmax.TOLERANCE[dtype])


def test_softmax_gives_zeros_to_a_query_that_sees_nothing(cuda_on_cpu):
    for keys in (64, 1024, 4101):
        scores = torch.randn(1, 1, 2, keys).requires_grad_()
        result = fused_scaled_masked_softmax(scores, softmax.SCALE, torch.tensor([[keys, 0]]))
        assert not result[0, 0, 0].any() and result[0, 0, 1].any()
        assert not torch.autograd.grad(result, scores, result.detach())[0][0, 0, 0].any()
