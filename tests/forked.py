"""Command lines in processes forked off one that has imported torch: seconds less for each than an interpreter anew.

What a tool does before it imports torch, and what an interpreter is started with, is for `subprocess` to test.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.multiprocessing as mp

from tests.world import launcher_environment, preloaded

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 300  # in which nothing that tests start hangs, on whatever machine


def _become(tool: str, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Run a tool as an interpreter does that is started with it; what it says goes to files in folder."""
    for descriptor in (1, 2):
        output = os.open(f"{folder}/{descriptor}", os.O_WRONLY | os.O_APPEND)
        os.dup2(output, descriptor)
        os.close(output)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [tool, *arguments]
    try:
        runpy.run_path(tool, run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


class Forked:
    """A running tool, used as a `subprocess.Popen` whose outputs are text. It runs in the root of the repository."""

    def __init__(
        self, tool: Path | str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it, with one thread and with `environment` on top of our own without a launcher's variables."""
        self._folder = tempfile.TemporaryDirectory(prefix="forked_")
        for descriptor in (1, 2):
            Path(self._folder.name, str(descriptor)).touch()
        self._command = [str(ROOT / tool), *map(str, arguments)]
        variables = launcher_environment() | {"OMP_NUM_THREADS": "1", **(environment or {})}
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(preloaded())
        self._process = context.Process(
            target=_become,
            args=(self._command[0], self._command[1:], variables, self._folder.name),
        )
        self._process.start()
        atexit.register(self._process.kill)  # else a test session waits for what a test left

    def wait_for_output(self) -> None:
        """Wait until it has printed something, or has ended."""
        output = Path(self._folder.name, "1")
        while not output.stat().st_size and self._process.is_alive():
            select.select([self._process.sentinel], [], [], 0.02)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def communicate(self, timeout: float = LIMIT_SECONDS) -> tuple[str, str]:
        """Wait for its end and give stdout and stderr; kill it and raise TimeoutExpired after so many seconds."""
        self._process.join(timeout)
        is_late = self.returncode is None
        if is_late:
            self._process.kill()
            self._process.join()
        stdout, stderr = (
            Path(self._folder.name, str(descriptor)).read_text() for descriptor in (1, 2)
        )
        if is_late:
            raise subprocess.TimeoutExpired(self._command, timeout, stdout, stderr)
        return stdout, stderr


def run_forked(
    tool: Path | str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    timeout: float = LIMIT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a tool, such as "tools/plan.py", to its end."""
    process = Forked(tool, *arguments, environment=environment)
    stdout, stderr = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess([tool, *arguments], process.returncode, stdout, stderr)
