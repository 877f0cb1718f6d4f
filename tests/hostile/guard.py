"""Runs one command in a forked process of little memory and time, and says how it ended."""

import contextlib
import faulthandler
import io
import os
import pickle
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.cli import run_main

SECONDS = 120
EXTRA_BYTES = (
    768 << 20
)  # of address space beyond what the parent has; a stack of a thread is 8 MB of it
MOST_BYTES = 160 << 20  # of memory, for files of 100 kB
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d .*|  .*|\S+: (\d+|good|).*")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    kind: Literal["refused", "accepted", "finding"]
    text: str  # the error of a refusal, or what is wrong

    @property
    def is_finding(self) -> bool:
        return self.kind == "finding"


def run_guarded(
    tool: Callable[[Sequence[str]], int | None],
    argv: Sequence[str],
    check: Callable[[], str | None] = lambda: None,
    *,
    folder: Path = Path("/"),
) -> Outcome:
    """Run a tool's main in a child as its command line does, in a folder; check, there, what it accepted.

    check gives what is wrong, None if nothing is.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.chdir(folder)
        outcome = _run(tool, argv, check)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        name = signal.Signals(status & 127).name if status & 127 else f"exit {status >> 8}"
        return Outcome("finding", f"died of {name}" + (" (a hang)" if name == "SIGALRM" else ""))
    return pickle.loads(answer)


def _run(
    tool: Callable[[Sequence[str]], int | None],
    argv: Sequence[str],
    check: Callable[[], str | None],
) -> Outcome:
    faulthandler.disable()  # a crash is reported by who waits
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + EXTRA_BYTES, size + EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    name = getattr(tool, "__module__", "tool")
    sys.argv = [f"{name}.py", *argv]
    errors = io.StringIO()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = run_main(lambda: tool(argv))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            if grown > MOST_BYTES:
                return Outcome("finding", f"took {grown >> 20} MB of memory, code {code}")
            if code == 0:
                problem = check()
                return Outcome("finding", problem) if problem else Outcome("accepted", "")
    except BaseException:  # whatever escapes is what we look for
        return Outcome("finding", traceback.format_exc(limit=-6))
    return judge(code, errors.getvalue(), f"{name}.py: error: ")


def judge(code: int, errors: str, prefix: str) -> Outcome:
    """Say whether a command that failed did so as promised: code 2, and one line that is an error."""
    lines = errors.splitlines()
    said = [line for line in lines if line.startswith(prefix)]
    if code != 2:
        return Outcome("finding", f"exit code {code}: {errors[-2000:]}")
    if "Traceback" in errors:
        return Outcome("finding", errors[-2000:])
    if not said and prefix.startswith("verify.py"):
        return Outcome("refused", errors.strip())  # a line a finding
    if len(said) != 1 or lines[-1] != said[0] or any(not LOG_LINE.match(one) for one in lines[:-1]):
        return Outcome("finding", f"not one line: {errors[-2000:]!r}")
    if not said[0].isprintable() and any(ord(char) < 32 for char in said[0]):
        return Outcome("finding", f"control characters in the error: {said[0]!r}")
    return Outcome("refused", said[0])
