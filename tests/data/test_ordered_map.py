import os
import signal
from itertools import islice

import pytest

from megatron.data.ordered_map import AHEAD, ordered_map
from megatron.errors import DataError


def uneven(task: int) -> tuple[int, int]:
    """Work that takes longer for every seventh task, so that results come out of order."""
    return task, sum(range(200_000 if task % 7 == 0 else 10))


def fail_at_five(task: int) -> int:
    if task == 5:
        raise DataError("five")
    return task


def die_at_five(task: int) -> int:
    if task == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers):
    assert list(ordered_map(uneven, range(50), workers=workers)) == list(map(uneven, range(50)))
    assert list(ordered_map(uneven, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_are_not_read_far_ahead(workers):
    read = 0

    def tasks():
        nonlocal read
        while True:
            read += 1
            yield read

    results = ordered_map(uneven, tasks(), workers=workers)
    assert [task for task, _ in islice(results, 20)] == list(range(1, 21))
    assert read <= 20 + AHEAD * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_user_is_raised_in_its_turn(workers):
    results = ordered_map(fail_at_five, range(100), workers=workers)
    assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="five"):
        next(results)


def test_a_killed_worker_ends_the_map_with_an_error():
    with pytest.raises(DataError, match="worker process ended early"):
        list(ordered_map(die_at_five, range(100), workers=2))


def test_large_tasks_and_results_do_not_block_each_other():
    tasks = [bytes([i]) * (1 << 20) for i in range(12)]
    assert list(ordered_map(bytes.upper, tasks, workers=2)) == [task.upper() for task in tasks]
