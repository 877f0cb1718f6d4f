"""What the choices of single operations come to together."""

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.choice import Situation
from megatron.kernels.registry import choose_kernels

GPU = Situation("cuda", torch.bfloat16, 128, 0.0)


def test_the_softmax_matters_to_the_explicit_attention_alone():
    named = [one.operation for one in choose_kernels("auto", GPU).choices]
    assert "softmax" not in named
    with pytest.raises(ConfigError, match="--attention-backend explicit's"):
        choose_kernels("auto", GPU, ["softmax=fused"])
    attend = choose_kernels("explicit", GPU, ["softmax=reference"]).attention
    assert attend.keywords != choose_kernels("explicit", GPU).attention.keywords
