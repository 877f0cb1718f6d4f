"""Signals: to a real launch, before it trains, a second time, and in the midst of a validation or a save."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import run as distributed_run

from megatron.checkpoint.reader import CheckpointReader
from megatron.training import signals
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.signals import ECHO_SECONDS, StopRequest
from megatron.training.start import plan_start
from megatron.training.train import train
from tests.forked import LIMIT_SECONDS, Forked
from tests.grid import grid_of
from tests.training.runs import flags_of, parse, read_lines, read_metrics, train_here

ROOT = Path(__file__).parents[2]
TORCHRUN = (Path(distributed_run.__file__), "--standalone", "--nproc-per-node", "2")
TOOL = "tools/pretrain_gpt.py"

# The tool, whose processes do not begin step 6 before they are signalled: however slow who signals them is.
HELD = """
import runpy, sys, time
from megatron.training import signals, train
heard = []
note, queue_step = signals.StopRequest._note, train.queue_step

def noted(self, *args):
    note(self, *args)
    heard.append(1)

def held(run, *args):
    while run.progress.iteration == 5 and not heard:
        time.sleep(0.01)
    return queue_step(run, *args)

signals.StopRequest._note, train.queue_step = noted, held
sys.argv[0] = "pretrain_gpt.py"
runpy.run_path({tool!r}, run_name="__main__")
"""


def _wait_for_lines(metrics: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "the run wrote no metrics"
        time.sleep(0.05)


def _weights(save: Path) -> dict[str, torch.Tensor]:
    (folder,) = sorted(save.glob("iter_*"))[-1:]
    reader = CheckpointReader.open(folder)
    return {name: reader.read(name) for name in reader.names()}


def test_terminated_launch_of_two_processes_continues_bitwise(world, corpus, tmp_path):
    extra = "--tensor-model-parallel-size 2 --train-iters 12 --global-batch-size 2"
    whole = flags_of(corpus, tmp_path / "whole", extra)
    parts = flags_of(corpus, tmp_path / "parts", extra)
    held = tmp_path / "held.py"
    held.write_text(HELD.format(tool=str(ROOT / TOOL)))
    process = Forked(*TORCHRUN, held, *parts.split())
    _wait_for_lines(tmp_path / "parts" / "metrics.jsonl", 4)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode != 0
    stopped_at = int((tmp_path / "parts" / "latest_checkpointed_iteration.txt").read_text())
    assert 3 <= stopped_at < 12
    assert f"left after step {stopped_at}" in stderr

    process = Forked(*TORCHRUN, TOOL, *parts.split())
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, stderr
    assert world(2).run(train_here, whole) == ["finished"] * 2
    losses = [
        {step: (row["lm_loss"], row["grad_norm"]) for step, row in read_metrics(save)[0].items()}
        for save in (tmp_path / "parts", tmp_path / "whole")
    ]
    assert losses[0] == losses[1]
    tensors = [_weights(tmp_path / name) for name in ("parts", "whole")]
    assert all(torch.equal(tensors[0][name], tensor) for name, tensor in tensors[1].items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signalled_process_saves_and_exits_with_75(corpus, tmp_path, number):
    process = Forked(TOOL, *flags_of(corpus, tmp_path, "--train-iters 1000000").split())
    _wait_for_lines(tmp_path / "metrics.jsonl", 3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 75, stderr
    last = max(read_metrics(tmp_path)[0])
    assert int((tmp_path / "latest_checkpointed_iteration.txt").read_text()) == last


# Its main thread waits in C code that no signal interrupts, as in a collective.
WAITING = """
import ctypes
from megatron import logging
from megatron.training import signals

logging.configure()
signals.ECHO_SECONDS = 0.0
with {context}:
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


def _start_waiting(context: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(context=context)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_signal_before_training_ends_a_process_that_waits_in_c_code(number):
    process = _start_waiting("signals.leaving_at_once()")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 128 + number
    (line,) = stderr.splitlines()
    assert f"{number.name} outside of training: left at once" in line


def test_a_second_signal_ends_a_process_that_waits_in_c_code():
    process = _start_waiting("signals.StopRequest()")
    process.send_signal(signal.SIGUSR1)
    assert "SIGUSR1: will save and leave" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    (line,) = stderr.splitlines()
    assert "SIGTERM again: left at once" in line


def test_an_echo_of_the_first_signal_is_no_second_one(monkeypatch):
    now, left = 1000.0, []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    monkeypatch.setattr(signals, "leave_at_once", left.append)
    request = StopRequest()
    assert not request.is_made
    request._hear(signal.SIGTERM)
    now += 0.9 * ECHO_SECONDS
    request._hear(signal.SIGTERM)
    assert request.is_made and not left
    now += 0.2 * ECHO_SECONDS
    request._hear(signal.SIGTERM)
    assert left == [128 + signal.SIGTERM]


def test_a_request_is_made_when_its_minutes_are_over(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    request = StopRequest(exit_duration_in_mins=2.0)
    now += 119.0
    assert not request.is_made
    now += 2.0
    assert request.is_made
    assert not StopRequest(2.0, started=now - 119.0).is_made
    assert StopRequest(2.0, started=now - 121.0).is_made  # loading took so long


class Signalled:
    """Something of a run that signals this process in the call after some others."""

    def __init__(self, inner, name, after):
        self._inner, self._name, self._after = inner, name, after
        self.num_calls = 0

    def __getattr__(self, name):
        method = getattr(self._inner, name)
        if name != self._name:
            return method

        def call(*args, **kwargs):
            self.num_calls += 1
            if self.num_calls == self._after + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return method(*args, **kwargs)

        return call


def train_signalled(rank: int, flags: str, where: str, after: int) -> tuple[str, int]:
    """Train; in the last process a signal comes during a validation or a save. Give the validation batches read."""
    inputs = open_inputs(parse(flags), dist.get_world_size())
    start = plan_start(inputs, dist.get_world_size())
    run = build_run(inputs, start, grid_of(inputs.config.parallel))
    is_last = rank == dist.get_world_size() - 1
    never = 1 << 30
    loader = Signalled(
        run.validation.loaders["valid"], "batch", after if is_last and where == "batch" else never
    )
    run.validation.loaders["valid"] = loader
    if is_last and where == "save_if_due":
        run = dataclasses.replace(run, saver=Signalled(run.saver, "save_if_due", after))
    outcome = train(run)
    run.close()
    return outcome, loader.num_calls


def train_started(rank: int, flags: str, minutes_ago: float) -> tuple[str, int]:
    """Train as a process that began before; give what became of it and after which step."""
    inputs = open_inputs(parse(flags), 1)
    run = build_run(inputs, plan_start(inputs, 1), grid_of(inputs.config.parallel))
    outcome = train(run, time.monotonic() - 60.0 * minutes_ago)
    run.close()
    return outcome, run.progress.iteration


def test_minutes_count_from_the_start_of_the_process(world, corpus, tmp_path):
    flags = flags_of(corpus, tmp_path, "--exit-duration-in-mins 600 --eval-iters 0 --train-iters 3")
    assert world(1).run(train_started, flags, 601.0) == [("stopped", 0)]


def test_a_signal_to_one_process_cuts_a_validation_short_and_saves(world, corpus, tmp_path):
    flags = flags_of(
        corpus, tmp_path, "--eval-interval 2 --eval-iters 9 --use-distributed-optimizer"
    )
    # 9 batches at step 0, and the third one of step 2: known before the fourth, agreed on before the fifth
    assert world(2).run(train_signalled, flags, "batch", 11) == [("stopped", 13)] * 2
    assert int((tmp_path / "latest_checkpointed_iteration.txt").read_text()) == 2
    assert {line["iteration"] for line in read_lines(tmp_path) if "ppl" in line} == {0}


def test_a_signal_during_the_first_validation_leaves_before_any_step(world, corpus, tmp_path):
    flags = flags_of(corpus, tmp_path, "--eval-iters 5")
    assert world(2).run(train_signalled, flags, "batch", 0) == [("stopped", 2)] * 2
    assert not (tmp_path / "latest_checkpointed_iteration.txt").exists()


def test_a_signal_during_a_save_leaves_with_it(world, corpus, tmp_path):
    flags = flags_of(corpus, tmp_path, "--eval-interval 100 --eval-iters 1 --save-interval 3")
    # called after each step, as each is logged
    assert world(2).run(train_signalled, flags, "save_if_due", 2) == [("stopped", 1)] * 2
    assert max(read_metrics(tmp_path)[0]) == 3
    assert int((tmp_path / "latest_checkpointed_iteration.txt").read_text()) == 3
