"""Which attention is chosen, what is said of it, and what is refused."""

import pytest
import torch

from megatron.errors import ConfigError
from megatron.kernels.attention_choice import select_attention
from megatron.kernels.choice import Situation
from megatron.kernels.flash_attention import find_flash_library
from megatron.kernels.registry import choose_kernels


def situation(device_type="cpu", dtype=torch.float32, head_dim=64, dropout=0.0):
    return Situation(device_type, dtype, head_dim, dropout)


def gpu(attention_dropout=0.0, **changes):
    return Situation("cuda", torch.bfloat16, 128, attention_dropout, **changes)


def masked(
    device_type="cuda",
    dtype=torch.bfloat16,
    dropout=0.0,
    *,
    head_dim=64,
    capability=(8, 0),
    has_window=False,
):
    return Situation(
        device_type,
        dtype,
        head_dim,
        dropout,
        masks_documents=not has_window,
        has_window=has_window,
        capability=capability,
    )


@pytest.mark.parametrize(
    "backend, where, name",
    [
        ("auto", situation(dropout=0.1), "tiled"),
        ("auto", situation("cuda"), "sdpa"),
        ("auto", situation("cuda", torch.bfloat16), "cudnn"),
        ("auto", situation("cuda", torch.bfloat16, dropout=0.125), "cudnn"),
        ("auto", situation("cuda", torch.bfloat16, dropout=0.1), "flash"),
        ("auto", situation("cuda", torch.bfloat16, head_dim=160), "flash"),
        ("sdpa", situation(dropout=0.1), "sdpa"),
        ("flash", situation(), "flash"),
        ("flash", situation("cuda", torch.float16), "flash"),
        ("explicit", situation("cuda"), "explicit"),
    ],
)
def test_choice_of_attention_and_its_reason(backend, where, name):
    chosen, reason = select_attention(backend, where)
    assert chosen.name == name
    assert reason
    kernels = choose_kernels(backend, where)
    assert getattr(kernels.attention, "func", kernels.attention) is chosen.function
    assert kernels.stores_attention_probabilities == (name == "explicit")
    assert kernels.choices[0].name == name and kernels.choices[0].reason == reason


@pytest.mark.parametrize(
    "where, obstacle",
    [
        (situation(dropout=0.1), "dropout"),
        (situation("cuda"), "--bf16 or --fp16"),
        (situation("cuda", torch.bfloat16, head_dim=320), "256"),
    ],
)
def test_flash_that_cannot_run_is_an_error_that_says_why(where, obstacle):
    with pytest.raises(ConfigError, match=obstacle) as caught:
        select_attention("flash", where)
    assert "--attention-backend auto" in str(caught.value)


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(
        ConfigError, match="auto, flash-attn, cudnn, flash, sdpa, tiled, blocked, explicit"
    ):
        select_attention("flsh", situation())


@pytest.mark.parametrize(
    ("backend", "situation", "name", "reason"),
    [
        ("auto", masked(), "flash", "what a token sees"),
        ("auto", masked(dropout=0.1), "sdpa", "--attention-dropout"),
        ("auto", masked(dtype=torch.float32), "sdpa", "--bf16"),
        ("auto", masked(head_dim=20), "sdpa", "multiple of 8"),
        ("auto", masked(capability=(7, 5)), "sdpa", "this GPU has 7.5"),
        ("auto", masked(capability=(9, 0)), "flash", "what a token sees"),
        (
            "auto",
            masked("cpu", torch.float32, 0.1),
            "tiled",
            "hidden by --reset-attention-mask not touched",
        ),
        ("auto", masked(has_window=True), "flash", "--window-size"),
        ("auto", masked(dtype=torch.float32, has_window=True), "sdpa", "--window-size by a mask"),
        ("auto", masked("cpu", torch.float32, has_window=True), "tiled", "--window-size"),
        ("flash", masked(), "flash", "asked for"),
        ("sdpa", masked(), "sdpa", "asked for"),
        ("explicit", masked("cpu"), "explicit", "asked for"),
    ],
)
def test_choice_with_document_masks_and_its_reason(backend, situation, name, reason):
    chosen, said = select_attention(backend, situation)
    assert chosen.name == name
    assert reason in said


@pytest.mark.parametrize(
    ("situation", "named"),
    [
        (masked("cpu"), "--reset-attention-mask on a CPU"),
        (masked(dropout=0.1), "--attention-dropout with --reset-attention-mask"),
        (masked("cpu", has_window=True), "--window-size on a CPU"),
    ],
)
def test_flash_that_cannot_hide_tokens_is_an_error_that_names_the_options(situation, named):
    with pytest.raises(ConfigError, match="--attention-backend flash") as caught:
        select_attention("flash", situation)
    assert named in str(caught.value)


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
    choice = choose_kernels("auto", gpu(**changes)).choices[0]
    assert choice.name == name and words in choice.reason


@pytest.mark.parametrize("backend", ["cudnn", "flash-attn"])
def test_attention_of_a_gpu_is_refused_on_a_cpu(backend):
    with pytest.raises(ConfigError, match=f"{backend} needs a GPU"):
        choose_kernels(backend, situation())


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
    assert choose_kernels("auto", gpu(flash_library=library)).choices[0].name == "cudnn"
    with pytest.raises(ConfigError, match="undefined symbol"):
        choose_kernels("flash-attn", gpu(flash_library=library))


def test_a_cpu_takes_the_first_attention_that_can_run_and_says_why_not_another():
    without = Situation("cpu", torch.float32, 64, 0.0, without_cpu_attention="needs a compiler")
    chosen, reason = select_attention("auto", without)
    assert chosen.name == "blocked" and reason.endswith("; tiled cannot run: needs a compiler")
    with pytest.raises(ConfigError, match="tiled cannot run: needs a compiler; use"):
        select_attention("tiled", without)
    with pytest.raises(ConfigError, match="tiled needs a CPU; use --attention-backend auto"):
        select_attention("tiled", situation("cuda"))
