"""What processes take is summed over all of them, and whose they are is told from whose they are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.evaluation.isolation.watch import SENDERS, _is_below, socket_bytes

MEGABYTES = 48
ROOT = Path(__file__).parents[2]
# In an interpreter without other children: each look is printed.
SCRIPT = f"""
import json, os, socket, sys
sys.path.insert(0, {str(ROOT)!r})
from megatron.evaluation.isolation import watch

folder = os.open("/proc", os.O_RDONLY)
looks = {{}}
try:
    watch.Watch(folder, 0).total()
except OSError as error:
    looks["alone"] = str(error)
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.close(done[1])
    if os.fork() == 0:
        held = bytearray({MEGABYTES} << 20)
        held[::4096] = b"x" * len(held[::4096])
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.wait()
    os._exit(0)
os.read(ready[0], 1)
looks["with a grandchild"] = watch.Watch(folder, 0).total()
sockets = [socket.socketpair() for _ in range(50)]
looks["with sockets"] = watch.Watch(folder, 1 << 20).total()
watch.MAX_SHARE = 1e-6
slow = watch.Watch(folder, 0)
slow.total()
looks["seconds"] = slow.seconds
os.close(done[1])
os.waitpid(child, 0)
print(json.dumps(looks))
"""


@pytest.fixture(scope="module")
def looks() -> dict:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_of_a_child_s_child_is_counted(looks: dict) -> None:
    assert MEGABYTES << 20 < looks["with a grandchild"] < 2 * MEGABYTES << 20


def test_sockets_count_by_what_they_can_hold(looks: dict) -> None:
    assert looks["with sockets"] - looks["with a grandchild"] >= 100 << 20
    assert socket_bytes() >= SENDERS * 4096


def test_to_see_no_process_is_an_error_and_not_no_memory(looks: dict) -> None:
    assert "hides the processes" in looks["alone"]


def test_what_takes_long_is_done_less_often(looks: dict) -> None:
    assert looks["seconds"] > 1.0


@pytest.mark.parametrize(
    ("pid", "is_below"), [(5, True), (6, True), (2, False), (9, False), (7, False), (1, False)]
)
def test_descent_is_told_by_parents_even_where_they_run_in_a_circle(
    pid: int, is_below: bool
) -> None:
    parents = {1: 0, 2: 1, 3: 2, 5: 3, 6: 5, 7: 8, 8: 7}
    assert _is_below(pid, 3, parents) == is_below
