"""Processes that join find out what they compute on, before one waits for another."""

import logging
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from megatron.errors import ConfigError
from megatron.options import ParallelConfig
from megatron.parallel import context
from megatron.parallel.context import check_same_device, check_torch, initialize_distributed
from megatron.parallel.launch import Launch

ROOT = Path(__file__).parents[2]


def told(rank, kinds):
    try:
        with mock.patch.object(context.socket, "gethostname", lambda: f"node{rank}"):
            check_same_device(kinds[rank])
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_processes_on_one_kind_of_device_go_on(world, kind):
    assert world(2).run(told, [kind] * 2) == [None, None]


def test_a_node_that_lost_a_gpu_is_named_on_every_process(world):
    messages = world(2).run(told, ["cuda", "cpu"])
    assert all("processes on node1, and enough on the other nodes" in text for text in messages)


@pytest.fixture
def two_gpus(monkeypatch):
    """A node of two GPUs, whose processes do not really join."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(context, "check_same_device", lambda kind: None)


def join(local_world_size, local_rank=0, backend="auto"):
    launch = Launch(local_rank=local_rank, local_world_size=local_world_size)
    return initialize_distributed(ParallelConfig(distributed_backend=backend), launch)


def test_each_process_has_the_gpu_of_its_number(two_gpus):
    assert join(2, local_rank=1) == torch.device("cuda", 1)
    assert join(2, backend="gloo") == torch.device("cpu")


def test_more_processes_than_gpus_say_that_they_are_on_the_cpu(two_gpus, caplog):
    with caplog.at_level(logging.INFO, context.logger.name):
        assert join(3) == torch.device("cpu")
    assert "this node has 2 GPU(s) for 3 processes. Start 2" in caplog.text
    with pytest.raises(ConfigError, match="has 2 for 3 processes"):
        join(3, backend="nccl")


def test_a_torch_that_was_not_tried_is_told_and_one_that_is_too_old_refused(caplog):
    with caplog.at_level(logging.INFO, context.logger.name):
        for version in ("2.11.0+cu130", "2.13.0+cpu", "2.15.1"):
            check_torch(version)
        assert not caplog.text
        check_torch("2.16.0.dev20261201+cpu")
        assert "torch 2.16.0.dev20261201+cpu is newer than 2.15" in caplog.text
        check_torch("3.0.0")
        assert "torch 3.0.0 is newer than 2.15" in caplog.text
    with pytest.raises(ConfigError, match=r"torch 2.9.1 is too old; install one from 2.11 on"):
        check_torch("2.9.1")


def test_setup_and_the_environment_take_torch_from_the_same_release_on():
    major, minor = context.OLDEST_TORCH
    assert f'"torch>={major}.{minor}"' in (ROOT / "setup.py").read_text()
    script = (ROOT / "tools/make_env.sh").read_text()
    assert f'OLDEST_TORCH="({major}, {minor})"' in script
    (pinned,) = re.findall(r"TORCH_VERSION=(\d+)\.(\d+)", script)
    assert context.OLDEST_TORCH <= tuple(map(int, pinned)) <= context.NEWEST_TRIED_TORCH
