"""How a program that was in a process group ends, whatever the threads of the group do meanwhile."""

import subprocess
import sys

import pytest

from tests.world import launcher_environment

# A process whose peer dies while it holds Python's lock to its end: the group's thread, which then has to let go of a
# tensor, waits for the lock until the interpreter ends.
PROGRAM = """
import atexit, os, sys, time
import torch
import torch.distributed as dist
from megatron import cli

folder, ending = sys.argv[1:]

def main():
    atexit.register(lambda: print("closed"))
    rank = 1 if (peer := os.fork()) == 0 else 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    dist.barrier()
    if rank == 1:
        time.sleep(0.2)
        os._exit(0)
    sys.setswitchinterval(1000)
    dist.all_reduce(torch.ones(1000), async_op=True)
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    if ending == "fail":
        raise OSError("unexpected")
    return 3

cli.run_tool(main)
"""


@pytest.mark.parametrize(("ending", "code"), [("return", 3), ("fail", 1)])
def test_threads_of_a_process_group_do_not_abort_a_program_that_ends(tmp_path, ending, code):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), ending],
        env=launcher_environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == code, result.stderr
    assert (
        result.stdout == "closed\n"
    )  # what was registered for the exit is done, and reaches a pipe
    assert ("OSError: unexpected" in result.stderr) == (ending == "fail")
