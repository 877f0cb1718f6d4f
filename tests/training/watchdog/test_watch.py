"""The watch: one process of several stops, dies, fails or is slow; the others say which, and end."""

import faulthandler
import json
import os
import signal
import time
from unittest import mock

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron import logging
from megatron.cli import EXIT_HUNG, EXIT_LOST_PEER
from megatron.errors import ConfigError, DataError, MegatronError
from megatron.parallel.agreement import shared
from megatron.parallel.launch import Launch
from megatron.parallel.lost_peer import is_lost_peer
from megatron.training.marks import Mark, Marks
from megatron.training.watchdog.board import Report
from megatron.training.watchdog.heartbeat import Heartbeat
from megatron.training.watchdog.patience import LEAST_SECONDS, LONG_FACTOR, NUM_FIRST, Patience
from megatron.training.watchdog.straggler import (
    NUM_WINDOWS,
    WINDOW_SECONDS,
    WINDOW_STEPS,
    Stragglers,
)
from megatron.training.watchdog.verdict import verdict
from megatron.training.watchdog.watch import Watch
from tests.training.runs import flags_of, parse, read_lines
from tests.training.watchdog.watched import train_watched

TIMEOUT = 6.0  # a step takes two seconds where eight others want the processor
HOST = os.uname().nodename


def flags_for(corpus, save, extra=""):
    return flags_of(
        corpus,
        save,
        f"--train-iters 30 --global-batch-size 6 --eval-iters 0 --watchdog-timeout-in-secs {TIMEOUT} {extra}",
    )


def test_a_stopped_process_is_named_and_the_others_end(corpus, tmp_path):
    ended = train_watched(3, tmp_path, flags_for(corpus, tmp_path / "run"), "SIGSTOP")
    assert ended.exit_codes == [EXIT_HUNG, EXIT_HUNG, None]
    last_words = [line for line in "".join(ended.said).splitlines() if "exit code" in line]
    assert len(last_words) == 1
    assert f"rank 2 ({HOST}, pid " in last_words[0] and "is stopped (SIGSTOP)" in last_words[0]
    assert "ranks 0, 1 in step 4 in all_reduce over" in last_words[0]
    hung_for = float(last_words[0].partition("has moved for ")[2].split()[0])
    assert TIMEOUT - 1 <= hung_for <= TIMEOUT + 2
    assert (
        f"and at {TIMEOUT:.0f} s the run ends: rank 2" in ended.said[0]
    )  # a warning at half the time
    logs = tmp_path / "run" / "logs"
    assert sorted(path.name for path in logs.iterdir()) == [
        "stacks_rank_00000.txt",
        "stacks_rank_00001.txt",
    ]
    assert "in train_step" in (logs / "stacks_rank_00001.txt").read_text()
    assert json.loads((tmp_path / "run" / "heartbeat.json").read_text())["state"] == "hung"


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGKILL in save"])
def test_a_killed_process_is_named_without_tracebacks(corpus, tmp_path, fault):
    flags = flags_for(corpus, tmp_path / "run", "--save-interval 4")
    ended = train_watched(3, tmp_path, flags, fault)
    assert ended.exit_codes == [EXIT_LOST_PEER, EXIT_LOST_PEER, -signal.SIGKILL]
    text = "".join(ended.said)
    assert "Traceback" not in text
    (last_words,) = [line for line in text.splitlines() if "exit code" in line]
    assert f"rank 2 ({HOST}, pid " in last_words and (
        "is gone" in last_words or "is dead" in last_words
    )


def test_a_failing_process_speaks_for_all(corpus, tmp_path):
    ended = train_watched(3, tmp_path, flags_for(corpus, tmp_path / "run"), "memory")
    assert ended.exit_codes == [EXIT_LOST_PEER, EXIT_LOST_PEER, 1]
    assert ended.said[1] == "" and "ends with exit code" not in ended.said[0]
    assert "failed in step 4: MemoryError: cannot allocate" in ended.said[2]
    assert "Traceback" in ended.said[2]
    assert json.loads((tmp_path / "run" / "heartbeat.json").read_text())["state"] == "failed"


def test_a_run_whose_launcher_is_gone_ends_and_does_not_pass_for_running(
    corpus, tmp_path, monkeypatch
):
    left = []
    monkeypatch.setattr("megatron.training.watchdog.watch.leave_at_once", left.append)
    watch = Watch(parse(flags_for(corpus, tmp_path)), Launch(parent_pid=-1), Marks())
    watch.begin_heartbeat()
    watch._check()
    assert left == [EXIT_LOST_PEER]
    assert json.loads((tmp_path / "heartbeat.json").read_text())["state"] == "failed"


def test_a_slow_process_is_named(corpus, tmp_path):
    flags = flags_for(corpus, tmp_path / "run", "--train-iters 20")
    ended = train_watched(3, tmp_path, flags, "delay")
    assert ended.exit_codes == [0, 0, 0]
    warnings = [line for line in "".join(ended.said).splitlines() if "straggler" in line]
    assert warnings and all(f"rank 2 ({HOST}, pid " in warning for warning in warnings)
    lines = [line for line in read_lines(tmp_path / "run") if "straggler" in line]
    assert lines and all(line["straggler"] == 2 and line["host"] == HOST for line in lines)
    assert lines[-1]["own_time_s"] > lines[-1]["median_own_time_s"]
    heartbeat = json.loads((tmp_path / "run" / "heartbeat.json").read_text())
    assert (heartbeat["state"], heartbeat["iteration"]) == ("finished", 20)


def _orphan(flags: str, pipe) -> None:
    """Fork a worker with a watch, tell its pid, and wait to be killed."""
    launcher = os.getpid()
    if os.fork() > 0:
        signal.pause()
    logging.configure()
    with Watch(parse(flags), Launch(has_rendezvous=True, parent_pid=launcher), Marks()):
        pipe.send(os.getpid())
        signal.pause()


def test_a_process_ends_with_its_launcher(corpus, tmp_path):
    context = mp.get_context("forkserver")
    ours, theirs = context.Pipe()
    launcher = context.Process(target=_orphan, args=(flags_for(corpus, tmp_path), theirs))
    launcher.start()
    theirs.close()
    worker = ours.recv()
    launcher.kill()
    launcher.join()
    has_ended = ours.poll(60)  # nobody holds the other end any more
    if not has_ended:
        os.kill(worker, signal.SIGKILL)
    assert has_ended


def test_a_process_that_torchrun_did_not_start_outlives_its_parent(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # of a shell that starts it and ends
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Launch.from_environment().parent_pid is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert Launch.from_environment().parent_pid == os.getppid()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("--a b is wrong"), False),
        (DataError("a.bin is short"), True),
        (shared(DataError("the processes read different files")), False),
    ],
)
def test_only_what_may_be_one_process_s_own_is_told_to_the_others(corpus, tmp_path, error, told):
    watch, exchange = Watch(parse(flags_for(corpus, tmp_path)), Launch(), Marks()), mock.Mock()
    with pytest.raises(MegatronError), watch:
        watch._exchange = exchange
        exchange.alarm, exchange.reports = None, []
        raise error
    faulthandler.cancel_dump_traceback_later()
    assert exchange.raise_alarm.called == told


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("NCCL error in: a.cpp:1, remote process exited\nncclRemoteError: A call failed", True),
        ("NCCL error in: a.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Call to", False),
        ("NCCL error in: a.cpp:1, invalid usage\nncclInvalidUsage: Duplicate GPU", False),
    ],
)
def test_an_error_of_this_process_s_own_gpu_is_no_lost_peer(text, is_lost):
    assert is_lost_peer(dist.DistBackendError(text)) == is_lost


def step_mark(number):
    return Mark(number, "step", number, 0)


def pass_steps(patience, seconds, count, first=1):
    for number in range(first, first + count):
        patience.observe(step_mark(number), 0.0)
        patience.observe(step_mark(number), seconds)


def test_patience_follows_the_longest_step_but_is_never_short():
    patience = Patience(None)
    pass_steps(patience, 1.0, NUM_FIRST + 1)
    assert (patience.limit, patience.age) == (LEAST_SECONDS, 1.0)
    pass_steps(patience, 30.0, 2, first=10)
    assert patience.limit == 300.0


def test_patience_is_greater_for_first_steps_and_for_what_takes_long():
    patience = Patience(5.0)
    pass_steps(patience, 1.0, NUM_FIRST)
    assert patience.limit == LONG_FACTOR * 5.0
    pass_steps(patience, 1.0, 1, first=10)
    assert patience.limit == 5.0
    patience.observe(Mark(11, "save", 11, 0), 0.0)
    assert patience.limit == LONG_FACTOR * 5.0


def report(rank, **changes):
    values = {
        "rank": rank,
        "host": f"node{rank}",
        "pid": 100 + rank,
        "stage": 0,
        "beat": 1,
        "phase": "step 7",
        "iteration": 7,
        "age": 9.0,
        "place": "megatron/training/step.py:9 in _reduce",
        "collective": "all_reduce over tp",
        "own_seconds": 0.0,
        "step_seconds": 0.0,
        "num_steps": 0,
    }
    return Report(**values | changes)


def test_verdict_names_who_is_silent():
    text = verdict([report(0), report(1), report(2)], {1})
    assert text.startswith(
        "rank 1 (node1, pid 101) is silent: stopped, killed, or its node is lost; last seen in step 7; "
        "waiting: ranks 0, 2 in step 7 in all_reduce over tp"
    )


def test_verdict_names_who_does_not_wait():
    reports = [report(0), report(1, collective=None, place="megatron/data/loader.py:3 in batch")]
    assert verdict(reports, set()).startswith(
        "rank 1 (node1, pid 101) is in step 7, at megatron/data/loader.py:3 in batch; waiting: rank 0 in"
    )


def test_verdict_names_who_is_behind_and_who_waits_elsewhere():
    reports = [report(0), report(1, iteration=6, phase="step 6", collective="recv over pp")]
    text = verdict(reports, set())
    assert text.startswith(
        "rank 1 (node1, pid 101) is behind, in step 6; waiting: rank 0 in step 7"
    )
    assert "rank 1 in step 6 in recv over pp" in text


def test_verdict_of_a_large_world_stays_short():
    reports = [report(rank, collective=None) for rank in range(1, 512)] + [report(0)]
    text = verdict(reports, set())
    assert "and 507 more ranks" in text and len(text) < 900


def judged(stragglers, own, *, window, stages=None):
    """Judge after some windows in which rank r needs own[r] seconds of each step of 1 s."""
    steps = max(WINDOW_STEPS, int(WINDOW_SECONDS)) * window
    return stragglers.judge(
        [
            report(
                rank,
                num_steps=steps,
                step_seconds=1.0 * steps,
                own_seconds=seconds * steps,
                stage=stages[rank] if stages else 0,
            )
            for rank, seconds in enumerate(own)
        ]
    )


def test_a_rank_is_a_straggler_only_if_it_is_slow_time_and_again():
    stragglers = Stragglers()
    assert judged(stragglers, [0, 0, 0], window=0) == []
    found = [judged(stragglers, [0.3, 0.8, 0.3], window=number) for number in range(1, 5)]
    named = [[(one.report.rank, one.is_new) for one in window] for window in found]
    assert named == [[], [(1, True)], [(1, False)], [(1, False)]]
    assert NUM_WINDOWS == 2
    (one,) = found[-1]
    assert (one.own_seconds, one.median_seconds) == pytest.approx((0.8, 0.3))


@pytest.mark.parametrize(
    ("own", "stages"),
    [
        ([0.5, 0.6, 0.7], None),  # within the factor
        ([0.01, 0.01, 0.05], None),  # a little of a step
        ([0.2, 0.2, 0.9, 0.9], [0, 0, 1, 1]),  # stages have different work
    ],
)
def test_no_rank_is_a_straggler_among_equals(own, stages):
    stragglers = Stragglers()
    assert not any(judged(stragglers, own, window=number, stages=stages) for number in range(6))


def test_a_heartbeat_that_cannot_be_written_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("megatron.training.watchdog.heartbeat.INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("megatron.training.watchdog.heartbeat.POLL_SECONDS", 0.001)
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    with caplog.at_level("WARNING", "megatron"):
        heartbeat = Heartbeat(tmp_path / "missing", Marks())
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        heartbeat.close("finished")
    (record,) = caplog.records
    assert "the run goes on" in record.getMessage()
