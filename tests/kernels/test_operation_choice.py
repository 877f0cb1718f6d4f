"""Which implementation of each operation is chosen, what is said of it, and what is refused."""

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.choice import Situation
from megatron.kernels.operation_choice import OPERATIONS
from megatron.kernels.registry import choose_kernels

NAMES = [one.name for one in OPERATIONS]


def situation(device_type="cuda", attention_dropout=0.0, **changes):
    return Situation(device_type, torch.bfloat16, 128, attention_dropout, **changes)


def chosen(kernels, where):
    _, product, *choices = choose_kernels("explicit", where, kernels).choices
    assert product.operation == "product"
    assert [one.operation for one in choices] == NAMES
    assert all(one.reason for one in choices)
    return {one.operation: one.name for one in choices}


def test_a_cpu_takes_the_references():
    assert set(chosen(["auto"], situation("cpu")).values()) == {"reference"}


def test_a_gpu_takes_what_is_fused_and_else_what_is_compiled_and_says_why():
    assert chosen(["auto"], situation())["layer_norm"] == "fused"
    without = situation(without_library="csrc/*.cu is not compiled here")
    assert chosen(["auto"], without)["layer_norm"] == "compiled"
    assert chosen(["auto"], without)["cross_entropy"] == "reference"
    assert "not compiled here" in choose_kernels("auto", without).choices[2].reason


def test_one_operation_can_be_chosen_beside_all():
    names = chosen(["reference", "layer_norm=compiled"], situation())
    assert names.pop("layer_norm") == "compiled"
    assert set(names.values()) == {"reference"}


def test_all_compiled_leaves_what_cannot_be_to_the_reference():
    names = chosen(["compiled"], situation("cpu"))
    assert names["bias_gelu"] == "compiled" and names["cross_entropy"] == "reference"


@pytest.mark.parametrize(
    "kernels, where, words",
    [
        (["fast"], situation(), "auto, fused, compiled, reference"),
        (["norm=fused"], situation(), "operations are layer_norm"),
        (["layer_norm=fast"], situation(), "layer_norm=fast"),
        (["fused"], situation("cpu"), "needs a GPU"),
        (["bias_gelu=fused"], situation(without_library="no nvcc"), "bias_gelu=fused: no nvcc"),
        (["cross_entropy=compiled"], situation(), "leave it to auto"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(kernels, where, words):
    with pytest.raises(ConfigError, match=words):
        choose_kernels("auto", where, kernels)
