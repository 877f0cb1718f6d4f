"""Which implementation of each operation is chosen, what is said of it, and what is refused."""

from unittest import mock

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.choice import Situation
from megatron.kernels.operation_choice import OPERATIONS, Operation, choose_operations, requested
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


# as they will be: one operation with C++ for CPUs, one without
FAKES = (
    Operation("bias_gelu", "by reference", "by compiling", "by CUDA", "by C++"),
    Operation("layer_norm", "by reference", "by compiling", "by CUDA"),
)


def choose_fakes(kernels, where):
    """Give {operation: (what computes it, why)}."""
    fakes = choose_operations(requested(kernels), where, FAKES)
    assert all(one.name in what for what, one in fakes.values() if one.name != "fused")
    return {name: (what, one.reason) for name, (what, one) in fakes.items()}


def test_a_cpu_takes_the_references_where_nothing_is_compiled_for_it():
    found = chosen(["auto"], situation("cpu", without_cpu_operations="no compiler"))
    assert set(found.values()) == {"reference"}
    found = chosen(["auto"], situation("cpu"))
    assert {name for name, choice in found.items() if choice == "reference"} == {"softmax"}


@pytest.mark.parametrize("kernels", [["auto"], ["fused"], ["reference", "bias_gelu=fused"]])
def test_a_cpu_takes_what_is_compiled_for_it_and_else_the_reference(kernels):
    found = choose_fakes(kernels, situation("cpu"))
    assert [what for what, _ in found.values()] == ["by C++", "by reference"]
    found = choose_fakes(["fused"], situation("cuda", without_cpu_operations="no compiler"))
    assert [what for what, _ in found.values()] == ["by CUDA", "by CUDA"]


@pytest.mark.parametrize(
    "where, words",
    [
        (situation("cpu", without_cpu_operations="no compiler"), "no compiler"),
        (
            Situation("cpu", torch.float16, 128, 0.0),
            "fp32 and bf16, and the dtype is torch.float16",
        ),
    ],
)
def test_what_a_cpu_cannot_run_is_the_reference_with_the_reason_or_an_error(where, words):
    assert choose_fakes(["auto"], where) == {
        "bias_gelu": ("by reference", mock.ANY),
        "layer_norm": ("by reference", "fastest on cpu"),
    }
    assert words in choose_fakes(["auto"], where)["bias_gelu"][1]
    for kernels, given in ((["fused"], "fused"), (["bias_gelu=fused"], "bias_gelu=fused")):
        with pytest.raises(ConfigError, match=f"--kernels {given}: .*{words}"):
            choose_fakes(kernels, where)


def test_what_is_fused_for_no_cpu_at_all_is_an_error_there():
    with pytest.raises(ConfigError, match="--kernels fused: needs a GPU"):
        choose_operations(requested(["fused"]), situation("cpu"), FAKES[1:])


def test_the_reference_can_be_asked_for_where_there_is_something_faster():
    found = choose_fakes(["auto", "bias_gelu=reference"], situation("cpu"))
    assert found["bias_gelu"] == ("by reference", "asked for")


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
        (["softmax=fused"], situation("cpu"), "softmax=fused: needs a GPU; leave it to auto"),
        (["bias_gelu=fused"], situation(without_library="no nvcc"), "bias_gelu=fused: no nvcc"),
        (
            ["fused"],
            situation(without_library="no nvcc"),
            "--kernels fused: no nvcc; use --kernels",
        ),
        (["cross_entropy=compiled"], situation(), "leave it to auto"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(kernels, where, words):
    with pytest.raises(ConfigError, match=words):
        choose_kernels("auto", where, kernels)
