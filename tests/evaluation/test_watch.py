"""What processes take is summed over all of them, and whose they are is told from whose they are not."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from megatron.evaluation.watch import Watch, _is_below, socket_bytes

MEGABYTES = 48
HOLD = f"""
import os, sys
def hold():
    held = bytearray({MEGABYTES} << 20)
    held[::4096] = b"x" * len(held[::4096])
    print("held", flush=True)
    sys.stdin.read()
if os.fork() == 0:
    hold()
    os._exit(0)
os.wait()
"""


@pytest.fixture
def folder() -> Iterator[int]:
    descriptor = os.open("/proc", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_memory_of_a_child_s_child_is_counted_while_it_lives(folder: int) -> None:
    watch = Watch(folder, 0)
    before = watch.total()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"held\n"
        during = watch.total()
        process.stdin.close()
    assert MEGABYTES << 20 < during - before < 2 * MEGABYTES << 20
    assert watch.total() <= before + (1 << 20)


def test_sockets_count_by_what_they_can_hold(folder: int) -> None:
    few, more = Watch(folder, 1 << 20).total(), Watch(folder, 3 << 20).total()
    assert more > few
    assert socket_bytes() >= 11 * 4096


def test_looking_takes_a_tenth_of_the_time_at_most(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(folder, 0)
    times = iter((0.0, 0.05))
    monkeypatch.setattr("megatron.evaluation.watch.time.monotonic", lambda: next(times))
    watch.total()
    assert watch.seconds == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("pid", "is_below"), [(5, True), (6, True), (2, False), (9, False), (7, False), (1, False)]
)
def test_descent_is_told_by_parents_even_where_they_run_in_a_circle(
    pid: int, is_below: bool
) -> None:
    parents = {1: 0, 2: 1, 3: 2, 5: 3, 6: 5, 7: 8, 8: 7}
    assert _is_below(pid, 3, parents) == is_below
