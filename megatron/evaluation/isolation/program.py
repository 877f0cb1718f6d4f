"""Programs of any language: their commands run in a folder of their own, and how they end is the verdict.

The guest's side starts and awaits the commands; no line of the candidate runs in that process, which is closed to
others, and the candidate's process has no channel. The judge's side reads what came of it. What a program's end says
of its own tests is another matter: `megatron.evaluation.falsified`. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

OUTPUT_BYTES = 1 << 16  # of what a command prints, looked at
DETAIL_CHARACTERS = 300
SYNTAX = re.compile(r"syntax ?error|parse error|does not compile", re.IGNORECASE)


def run_steps(message: dict[str, Any]) -> dict[str, Any]:
    """Write the files and run the commands, until one fails. The guest's side."""
    folder = tempfile.mkdtemp()
    try:
        for name, text in message["files"].items():
            Path(folder, name).write_text(text, encoding="utf-8", errors="surrogatepass")
        ends = []
        for number, step in enumerate(message["steps"]):
            ends.append(_run(step, folder, number))
            if ends[-1]["code"] != 0:
                break
        return {"ends": ends}
    except OSError as error:
        return {"ends": [], "error": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(step: dict[str, Any], folder: str, number: int) -> dict[str, Any]:
    outputs = [f"{folder}/.{name}-{number}" for name in ("output", "errors")]
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.chdir(folder)
            for place, path in enumerate(outputs, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), place)
            os.closerange(3, 256)
            _limit(step)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execve(step["command"][0], step["command"], step["environment"])
        finally:
            os._exit(127)
    pidfd = os.pidfd_open(pid)
    is_ended = bool(select.select([pidfd], [], [], step["wall_seconds"])[0])
    os.close(pidfd)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it left behind; itself, if its time is up
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    texts = [_read(path) for path in outputs]
    return {"code": code, "is_ended": is_ended, "output": texts[0], "errors": texts[1]}


def _limit(step: dict[str, Any]) -> None:
    """Leave this process no more than a step may have; what the sandbox itself allows is the most."""
    limits = [
        (resource.RLIMIT_CPU, step["cpu_seconds"]),
        (resource.RLIMIT_DATA, step["memory"]),
    ]
    if step["bounds_addresses"]:
        limits.append((resource.RLIMIT_AS, step["memory"]))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, hard if kind == resource.RLIMIT_CPU else value))


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(OUTPUT_BYTES).decode("utf-8", errors="replace")
    except OSError:  # the program took it away
        return ""


def outcome_of(trial: dict[str, Any], reply: dict[str, Any]) -> tuple[str, str]:
    """Say how a program did. The judge's side; what the guest says is how processes ended."""
    ends = reply.get("ends", [])
    if not ends:
        return "unsupported", str(reply.get("error", "nothing ran"))[:DETAIL_CHARACTERS]
    end, step = ends[-1], trial["steps"][len(ends) - 1]
    said = str(end["errors"]).strip() or str(end["output"]).strip()
    said = said[:DETAIL_CHARACTERS]
    code = int(end["code"])
    if not end["is_ended"]:
        what = "run" if step["is_test"] else "be compiled"
        return "timeout-wall", f"it did not {what} in {step['wall_seconds']} s"
    if code == -signal.SIGXCPU:
        return "timeout-cpu", "its processor time is used up"
    if not step["is_test"]:
        if code == 0:
            return "unsupported", "no command holds the tests"
        return "syntax", said
    if code < 0 and code != -signal.SIGABRT:  # which is how some languages' assertions end
        with contextlib.suppress(ValueError):
            return "exited", f"ended by {signal.Signals(-code).name}: {said}"[:DETAIL_CHARACTERS]
    if code == 0 and not _has_failed(step["failure"], end):
        return "passed", ""
    return "syntax" if SYNTAX.search(said) else "wrong", said


def _has_failed(failure: str, end: dict[str, Any]) -> bool:
    printed = f"{end['output']}\n{end['errors']}"
    return bool(failure) and re.search(failure, printed) is not None
