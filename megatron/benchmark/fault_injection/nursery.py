"""Starts processes in milliseconds: forks them off one that has imported everything, and sees how each ends.

`Nursery` is the caller's side, `main` the process that forks. Between them go lines of JSON: a `Brood` to start, then
the `Ends` of its processes. The nursery adopts whatever its processes leave behind, so no orphan escapes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

PRELOADED = (
    "megatron.benchmark.fault_injection.moments",
    "megatron.training.pretrain",
    "torch.utils.tensorboard",
)
ORPHAN_SECONDS = 5.0  # in which what a dead process started has to end, too
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True)
class Brood:
    """Processes that belong together: each calls a function with its own arguments."""

    function: str  # "package.module:function"
    arguments: Sequence[dict[str, Any]]
    outputs: Sequence[str]  # a file each, for stdout and stderr
    limit_seconds: float  # a process that has not ended by then hangs


@dataclass(frozen=True)
class Ends:
    """How the processes of a brood ended, in order."""

    codes: list[int]  # exit codes, negative for signals
    seconds: list[float]  # from the start
    hung: list[int]  # those that had to be killed at the limit
    stopped: list[int]  # those that hung in SIGSTOP and were killed once all others had ended
    orphans: list[str]  # command lines of what was left, and then killed


class Nursery:
    """The process that forks, for as long as the context lasts."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megatron.benchmark.fault_injection.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, brood: Brood) -> Ends:
        """Start the processes and wait until all have ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(brood)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery died; what it said stands above"
        return Ends(**json.loads(answer))


def main() -> None:
    """Start broods as stdin asks for them, until it ends."""
    # Ctrl-C reaches the processes too: they leave, and then this does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for line in sys.stdin:
        ends = _raise_brood(Brood(**json.loads(line)))
        print(json.dumps(dataclasses.asdict(ends)), flush=True)


def _begin(function: str, arguments: dict[str, Any], output: str) -> None:
    """Become a process of a brood."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(arguments)


def _raise_brood(brood: Brood) -> Ends:
    context = multiprocessing.get_context("fork")
    start = time.monotonic()
    processes = [
        context.Process(target=_begin, args=(brood.function, arguments, output))
        for arguments, output in zip(brood.arguments, brood.outputs, strict=True)
    ]
    for process in processes:
        process.start()
    seconds = [0.0] * len(processes)
    stopped: list[int] = []
    hung: list[int] = []
    running = dict(enumerate(processes))
    while running:
        wait([process.sentinel for process in running.values()], timeout=0.2)
        for number, process in list(running.items()):
            if process.exitcode is not None:
                seconds[number] = time.monotonic() - start
                del running[number]
        is_late = time.monotonic() - start > brood.limit_seconds
        if running and all(_state(process) == "T" for process in running.values()):
            stopped += running
            _end(running.values())
        elif running and is_late:
            hung += [number for number, process in running.items() if _state(process) != "T"]
            _end(running.values())
    codes = [process.exitcode for process in processes]
    return Ends([code or 0 for code in codes], seconds, hung, stopped, _end_orphans())


def _end(processes: Iterable[BaseProcess]) -> None:
    """Kill processes and wait for their end; those that are not stopped may print where they stand."""
    processes = list(processes)
    for process in processes:
        if process.pid is not None and process.is_alive() and _state(process) != "T":
            os.kill(process.pid, signal.SIGUSR2)  # a victim's faulthandler
            process.join(0.3)
    for process in processes:
        process.kill()
        process.join()


def _state(process: BaseProcess) -> str:
    """Give the letter by which the kernel says what a process does: T for stopped, empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _end_orphans() -> list[str]:
    """Wait for what the dead left behind, kill what is still there then, and name it."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (orphans := _children()) and time.monotonic() < deadline:
        time.sleep(0.02)
        _reap()
    names = []
    for orphan in orphans:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{orphan}/cmdline").read_bytes().split(b"\0")
            names.append(b" ".join(words).decode(errors="replace").strip())
            os.kill(orphan, signal.SIGKILL)
    while _children():
        time.sleep(0.01)
        _reap()
    return names


def _reap() -> None:
    """Let the kernel forget children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _children() -> list[int]:
    """Give the processes whose parent this is, ended ones too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    main()
