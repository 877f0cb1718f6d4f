"""A signal to a real launch: it saves, leaves with the documented code, and the same command continues."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.reader import CheckpointReader
from tests.training.runs import flags_of, read_metrics
from tests.world import launcher_environment

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TOOL = ["tools/pretrain_gpt.py"]
PATIENCE_SECONDS = 120


def _start(command: list[str], flags: str) -> subprocess.Popen:
    environment = launcher_environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command + flags.split(), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def _wait_for_lines(metrics: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the run wrote no metrics"
        time.sleep(0.05)


def _weights(save: Path) -> dict[str, torch.Tensor]:
    (folder,) = sorted(save.glob("iter_*"))[-1:]
    reader = CheckpointReader.open(folder)
    return {name: reader.read(name) for name in reader.names()}


def test_terminated_launch_of_two_processes_continues_bitwise(corpus, tmp_path):
    extra = "--tensor-model-parallel-size 2 --train-iters 12 --global-batch-size 2"
    whole = flags_of(corpus, tmp_path / "whole", extra)
    parts = flags_of(corpus, tmp_path / "parts", extra)
    process = _start(TORCHRUN + TOOL, parts)
    _wait_for_lines(tmp_path / "parts" / "metrics.jsonl", 4)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode != 0
    stopped_at = int((tmp_path / "parts" / "latest_checkpointed_iteration.txt").read_text())
    assert 3 <= stopped_at < 12
    assert f"left after step {stopped_at}" in stderr

    process = _start(TORCHRUN + TOOL, parts)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    process = _start(TORCHRUN + TOOL, whole)
    assert process.wait(PATIENCE_SECONDS) == 0
    losses = [
        {step: (row["lm_loss"], row["grad_norm"]) for step, row in read_metrics(save)[0].items()}
        for save in (tmp_path / "parts", tmp_path / "whole")
    ]
    assert losses[0] == losses[1]
    tensors = [_weights(tmp_path / name) for name in ("parts", "whole")]
    assert all(torch.equal(tensors[0][name], tensor) for name, tensor in tensors[1].items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signalled_process_saves_and_exits_with_75(corpus, tmp_path, number):
    process = _start([sys.executable, *TOOL], flags_of(corpus, tmp_path, "--train-iters 5000"))
    _wait_for_lines(tmp_path / "metrics.jsonl", 3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, stderr
    last = max(read_metrics(tmp_path)[0])
    assert int((tmp_path / "latest_checkpointed_iteration.txt").read_text()) == last
