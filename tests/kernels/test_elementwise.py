"""Layer norm, bias + GELU and bias + dropout + residual against their formulas, with gradients."""

import math

import pytest
import torch

from megatron.kernels.bias_dropout_residual import bias_dropout_residual
from megatron.kernels.bias_gelu import bias_gelu
from megatron.kernels.dropout import Dropout, drop_mask, keep_scale, token_keys
from megatron.kernels.layer_norm import layer_norm

SHAPE = (5, 3, 7)


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def assert_same(function, formula, *inputs):
    """Equal values, and equal gradients of every input. The product (first input) may be overwritten."""
    torch.manual_seed(0)
    actual = function(inputs[0] * 1, *inputs[1:])
    expected = formula(*inputs)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((actual * weights).sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weights).sum(), inputs))


def test_bias_gelu_is_the_tanh_form():
    def formula(x, bias):
        y = x + bias
        return 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))

    assert_same(bias_gelu, formula, draw(*SHAPE), draw(7))
    assert_same(lambda x: bias_gelu(x, None), lambda x: formula(x, 0), draw(*SHAPE))


@pytest.mark.parametrize("probability", [None, 0.4])
def test_bias_dropout_residual_adds_what_is_kept(probability):
    keys = token_keys(torch.arange(3), torch.arange(5))
    dropout, kept = None, 1.0
    if probability is not None:
        dropout = Dropout(probability, keys)
        kept = ~drop_mask(keys, 7, probability) * keep_scale(probability)
    assert_same(
        lambda x, bias, residual: bias_dropout_residual(x, bias, residual, dropout),
        lambda x, bias, residual: residual + (x + bias) * kept,
        draw(*SHAPE),
        draw(7),
        draw(*SHAPE),
    )
    assert_same(
        lambda x, residual: bias_dropout_residual(x, None, residual, dropout),
        lambda x, residual: residual + x * kept,
        draw(*SHAPE),
        draw(*SHAPE),
    )


def test_layer_norm_uses_the_epsilon_it_is_given():
    def formula(x, weight, bias):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / (variance + 0.3).sqrt() * weight + bias

    assert_same(
        lambda x, weight, bias: layer_norm(x, weight, bias, 0.3),
        formula,
        draw(*SHAPE),
        draw(7),
        draw(7),
    )
