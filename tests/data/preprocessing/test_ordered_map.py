import itertools
import os
import signal
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from megatron.data.preprocessing.ordered_map import AHEAD, Workers, in_thread
from megatron.errors import DataError

ROOT = Path(__file__).parents[3]


def uneven(task: int) -> tuple[int, int]:
    """Work that takes longer for every seventh task, so that results come out of order."""
    return task, sum(range(200_000 if task % 7 == 0 else 10))


def fail_at_five(task: int) -> int:
    if task == 5:
        raise DataError("five")
    return task


def run_script(text: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from megatron.data.preprocessing.ordered_map import Workers\n" + textwrap.dedent(text),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def die_at_five(task: int) -> int:
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def double(array: np.ndarray) -> np.ndarray:
    return array * 2


def map_all(function, tasks, num_workers=2, **kwargs):
    with Workers(function, num_workers, **kwargs) as workers:
        return list(workers.map(tasks))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers):
    assert map_all(uneven, range(50), num_workers) == list(map(uneven, range(50)))
    assert map_all(uneven, [], num_workers) == []


@pytest.mark.parametrize("num_workers", [1, 3])
def test_tasks_are_not_read_far_ahead(num_workers):
    read = 0

    def tasks():
        nonlocal read
        while True:
            read += 1
            yield read

    with Workers(uneven, num_workers) as workers:
        results = workers.map(tasks())
        assert [task for task, _ in islice(results, 20)] == list(range(1, 21))
        assert read <= 20 + AHEAD * num_workers


@pytest.mark.parametrize("stage", ["function", "fetch"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_the_user_is_raised_in_its_turn(num_workers, stage):
    stages = {"function": uneven, "fetch": int} | {stage: fail_at_five}
    with Workers(stages["function"], num_workers, fetch=stages["fetch"]) as workers:
        results = workers.map(range(100))
        assert len(list(islice(results, 5))) == 5
        with pytest.raises(DataError, match="five"):
            next(results)


@pytest.mark.parametrize("stage", ["function", "fetch"])
def test_a_killed_worker_ends_the_map_with_an_error(stage):
    stages = {"function": uneven, "fetch": int} | {stage: die_at_five}
    with pytest.raises(DataError, match="worker process ended early"):
        map_all(stages["function"], range(100), fetch=stages["fetch"])


@pytest.mark.parametrize("stage", ["function", "fetch"])
def test_an_unexpected_error_of_a_worker_is_shown_and_ends_the_map(stage):
    result = run_script(f"""
        def divide(task):
            return 1 / task
        stages = {{"function": abs, "fetch": abs}} | {{"{stage}": divide}}
        with Workers(stages["function"], 2, fetch=stages["fetch"]) as workers:
            print(list(workers.map([1, 0, 1])))
    """)
    assert "ZeroDivisionError" in result.stderr
    assert "DataError: a worker process ended early" in result.stderr.splitlines()[-1]


def test_large_tasks_and_results_do_not_block_each_other():
    tasks = [np.full(1 << 20, number, np.uint8) for number in range(20)]
    found = map_all(double, tasks, 2)
    assert [array.tobytes() for array in found] == [(task * 2).tobytes() for task in tasks]


def test_workers_end_with_their_caller():
    """The script ends when all who hold its output have ended."""
    result = run_script("""
        import os, signal
        with Workers(abs, 3) as workers:
            for result in workers.map(range(10**6)):
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert result.returncode == -signal.SIGKILL


def test_a_thread_fetches_ahead_and_hands_on_errors():
    def numbers():
        yield from range(5)
        raise DataError("the end")

    items = in_thread(numbers(), 2)
    assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="the end"):
        next(items)
    assert list(in_thread([], 3)) == []
    endless = in_thread(itertools.count(), 3)
    assert next(endless) == 0
    endless.close()
