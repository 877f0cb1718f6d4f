"""What torch.compile makes of the elementwise operations equals the references, gradients too."""

import pytest
import torch

from megatron.kernels.bias_dropout_residual import bias_dropout_residual_layer_norm
from megatron.kernels.bias_gelu import bias_gelu
from megatron.kernels.compiled import (
    compiled_bias_dropout_residual_layer_norm,
    compiled_bias_gelu,
    compiled_layer_norm,
)
from megatron.kernels.dropout import Dropout, token_keys

SHAPE = (5, 3, 12)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


def results(function, inputs):
    """Outputs and gradients; the first input may be overwritten."""
    outputs = function(inputs[0] * 1, *inputs[1:])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((out * torch.arange(1.0, out.numel() + 1).view_as(out)).sum() for out in outputs)
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    return (*outputs, *torch.autograd.grad(total, tensors))


@pytest.mark.parametrize("probability", [None, 0.3])
def test_compiled_operations_equal_their_references(probability):
    x, residual, bias, weight = draw(*SHAPE), draw(*SHAPE[:2], 12), draw(12), draw(12)
    torch.testing.assert_close(
        results(compiled_bias_gelu, (x, bias)), results(bias_gelu, (x, bias))
    )
    dropout = None
    if probability is not None:
        dropout = Dropout(probability, token_keys(torch.arange(3), torch.arange(5)))

    def with_norm(function):
        return lambda *tensors: function(*tensors[:3], dropout, *tensors[3:], 1e-5)

    inputs = (x, bias, residual, weight, draw(12))
    torch.testing.assert_close(
        results(with_norm(compiled_bias_dropout_residual_layer_norm), inputs),
        results(with_norm(bias_dropout_residual_layer_norm), inputs),
        rtol=1e-4,
        atol=1e-3,
    )


def test_the_norm_of_a_sum_is_the_norm_of_what_is_kept_of_it():
    x, residual = draw(64, 2, 256).detach().bfloat16(), draw(64, 2, 256).detach().bfloat16() * 3
    weight, bias = draw(256).detach().bfloat16(), draw(256).detach().bfloat16()
    total, normed = compiled_bias_dropout_residual_layer_norm(
        x, bias, residual, None, weight, bias, 1e-5
    )
    assert torch.equal(compiled_layer_norm(total, weight, bias, 1e-5), normed)
