"""Runs a script against the installed megatron-core, whose package has the same name as ours."""

import functools
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Its folder megatron/ is put in place of ours, in a process of its own that runs elsewhere. It imports for seconds, once;
# then each line of its input is a script, which a process forked off it runs with its outputs in files.
SERVER = """
import importlib.metadata, json, os, sys, traceback, types
megatron = types.ModuleType("megatron")
megatron.__path__ = [str(importlib.metadata.distribution("megatron-core").locate_file("megatron"))]
sys.modules["megatron"] = megatron
import megatron.core

def run(script, args, folder):
    for descriptor in (1, 2):
        os.dup2(os.open(f"{folder}/{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv[1:] = args
    try:
        exec(script, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(*json.loads(line))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, file=answers, flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the process that has megatron-core imported; it ends with this one, whose end it reads from."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER],
        cwd=tempfile.gettempdir(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_megatron_core(script: str, *args: str) -> str:
    """Run script, which may `from megatron.core… import …`, with args; give its stdout, or skip the test."""
    try:
        importlib.metadata.distribution("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("megatron-core is not installed (requirements-dev.txt)")
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory(prefix="megatron_core_") as folder:
        server.stdin.write(json.dumps((script, args, folder)) + "\n")
        server.stdin.flush()
        code = server.stdout.readline().strip()
        assert code, "megatron-core cannot be imported; what it said stands above"
        assert code == "0", Path(folder, "2").read_text()
        return Path(folder, "1").read_text()
