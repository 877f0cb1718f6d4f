"""Several processes before they write: one tells of a mistake of all, and each of what it alone met."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from megatron import logging
from megatron.cli import EXIT_USER_ERROR
from megatron.errors import CheckpointError, ConfigError
from megatron.inference import load as load_module
from megatron.inference import model_flags
from megatron.parallel.launch import Launch


def fail(error: Exception) -> int:
    raise error


def test_a_mistake_that_all_processes_meet_is_told_by_the_first() -> None:
    error = ConfigError("two heads and three processes")
    with pytest.raises(ConfigError):
        model_flags.with_one_voice(Launch(rank=0, world_size=2), lambda: fail(error))
    second = Launch(rank=1, world_size=2)
    assert model_flags.with_one_voice(second, lambda: fail(error)) == EXIT_USER_ERROR
    assert model_flags.with_one_voice(second, lambda: 3) == 3


@pytest.mark.parametrize(("rank", "is_told"), [(0, False), (1, True)])
def test_a_file_that_one_process_alone_reads_is_named_by_it(
    monkeypatch, capsys, rank, is_told
) -> None:
    error = CheckpointError("part 7 is damaged")
    here = SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(model_flags, "_join_processes", lambda args, launch: here)
    monkeypatch.setattr(load_module, "load_model", lambda *_: fail(error))
    source = SimpleNamespace(model=None, tensors=None, dtype=torch.float32)
    logging.configure(rank)
    with pytest.raises(CheckpointError):
        model_flags.load(argparse.Namespace(dtype="fp32"), Launch(rank=rank, world_size=2), source)
    assert ("[rank 1] part 7 is damaged" in capsys.readouterr().err) == is_told
