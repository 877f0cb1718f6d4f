"""Where an extension for CPUs cannot be called it is said why, and a model's kernels are chosen by that."""

from unittest import mock

import pytest
import torch

import megatron.kernels
from megatron.kernels import cpu_library
from megatron.model.gpt import choose_model_kernels
from megatron.options import ModelConfig


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("_absent", None, "megatron/kernels/_absent is not compiled (make env"),
        ("_broken", "raise ImportError('undefined symbol')", "be loaded (undefined symbol)"),
        ("_before", "", "older sources"),
        ("_older", "VERSION = 1", "older sources"),
        ("_current", "VERSION = 2", None),
    ],
)
def test_an_extension_that_cannot_be_called_is_named_with_what_to_do(
    name, source, words, tmp_path, monkeypatch
):
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setattr(megatron.kernels, "__path__", [*megatron.kernels.__path__, str(tmp_path)])
    monkeypatch.setitem(cpu_library.VERSIONS, name, 2)
    found = cpu_library.obstacle(name)
    assert (found is None) if words is None else (words in found and "make env" in found)


def test_a_model_is_told_of_both_extensions(monkeypatch):
    monkeypatch.setattr(cpu_library, "obstacle", lambda name: f"without {name}")
    model = ModelConfig(
        num_layers=1,
        hidden_size=64,
        num_attention_heads=1,
        max_position_embeddings=8,
        vocab_size=16,
    )
    with mock.patch("megatron.model.gpt.choose_kernels") as choose:
        choose_model_kernels(model, torch.device("cpu"), torch.float32)
    situation = choose.call_args.args[1]
    assert situation.without_cpu_operations == "without _cpu_operations"
    assert situation.without_cpu_attention == "without _cpu_attention"
