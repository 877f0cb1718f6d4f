"""Which implementation of each operation is chosen, what is said of it, and what is refused."""

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.flash_attention import find_flash_library
from megatron.kernels.registry import OPERATIONS, Situation, choose_kernels

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
        (["softmax=fused"], situation(), "explicit"),
        (["cross_entropy=compiled"], situation(), "leave it to auto"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(kernels, where, words):
    with pytest.raises(ConfigError, match=words):
        choose_kernels("auto", where, kernels)


def test_the_softmax_matters_to_the_explicit_attention_alone():
    named = [one.operation for one in choose_kernels("auto", situation()).choices]
    assert "softmax" not in named


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), None), ((8, 9), "fp8"), ((9, 0), "fp8"), (None, "fp8")]
)
def test_products_in_8_bits_need_a_gpu_that_has_them(capability, name):
    where = situation(has_fp8=True, capability=capability)
    if name is None:
        with pytest.raises(ConfigError, match=r"compute capability 8\.9"):
            choose_kernels("auto", where)
    else:
        assert choose_kernels("auto", where).choices[1].name == name


@pytest.mark.parametrize(
    "changes, name, words",
    [
        ({}, "cudnn", "cuDNN"),
        ({"masks_documents": True}, "flash", "only of what a token sees"),
        ({"splits_sequences": True}, "flash", "FlashAttention"),
        ({"attention_dropout": 0.1}, "flash", "FlashAttention"),
        ({"attention_dropout": 0.125}, "cudnn", "cuDNN"),
        ({"capability": (8, 0)}, "flash", "FlashAttention"),
        ({"capability": (7, 0)}, "sdpa", "flash needs compute capability 8.0"),
        (
            {"masks_documents": True, "has_window": True, "capability": (7, 0)},
            "sdpa",
            "mask of all",
        ),
    ],
)
def test_attention_on_a_gpu(changes, name, words):
    choice = choose_kernels("auto", situation(**changes)).choices[0]
    assert choice.name == name and words in choice.reason


@pytest.mark.parametrize("backend", ["cudnn", "flash-attn"])
def test_attention_of_a_gpu_is_refused_on_a_cpu(backend):
    with pytest.raises(ConfigError, match=f"{backend} needs a GPU"):
        choose_kernels(backend, situation("cpu"))


@pytest.mark.parametrize(
    "capability, installed, generation",
    [
        ((9, 0), {"flash_attn_interface", "flash_attn.cute"}, 3),
        ((10, 0), {"flash_attn_interface", "flash_attn.cute"}, 4),
        ((8, 0), {"flash_attn_interface", "flash_attn.flash_attn_interface"}, 2),
        ((8, 0), {"flash_attn.cute"}, None),
        ((9, 0), set(), None),
    ],
)
def test_the_newest_package_that_fits_the_gpu_is_found(capability, installed, generation):
    library = find_flash_library(capability, installed.__contains__)
    assert (library and library.generation) == generation


def test_a_package_is_found_without_importing_what_it_lies_in(tmp_path, monkeypatch):
    package = tmp_path / "flash_attn"
    (package / "cute").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('undefined symbol')")
    (package / "cute" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    library = find_flash_library((9, 0))
    assert library is not None and library.generation == 4
    assert choose_kernels("auto", situation(flash_library=library)).choices[0].name == "cudnn"
    with pytest.raises(ConfigError, match="undefined symbol"):
        choose_kernels("flash-attn", situation(flash_library=library))
