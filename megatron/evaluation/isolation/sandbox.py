"""Run generated programs against tests where they can reach nothing, and say how it ended.

The verdict is the judge's, a process that runs no line of the candidate (judge.py), and reaches the parent with a
nonce over a socket that the candidate's process never had. What ends early, prints, exits or lies has no verdict.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from megatron.errors import ConfigError
from megatron.evaluation.isolation import wire
from megatron.evaluation.isolation.trial import AnyTrial, Equipment, Limits, Trial, Verdict

NOBODY = 65534
START_SECONDS = 30.0
END_SECONDS = 5.0
DEFAULT_LIMITS = Limits()
NO_EQUIPMENT = Equipment()
COMMAND = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from megatron.evaluation.isolation.zygote import main; sys.path.pop(); main()"
)
# What passes wherever programs can be run and judged.
PROBE = Trial("def f():\n    pass\n", "", "assert f() is None\n", ("f",))
UNSANDBOXED = "--i-accept-unsandboxed"
# Of a worker with packages: what is forked must have one thread, and draw to no screen.
PACKAGE_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp",
}


class Sandbox:
    """One worker: runs one trial at a time. Use as a context manager."""

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        equipment: Equipment = NO_EQUIPMENT,
        *,
        is_isolated: bool = True,
    ) -> None:
        """Start the worker. Raises ConfigError where the machine cannot isolate it."""
        self._limits = limits
        self._equipment = equipment
        self._judge: socket.socket | None = None  # of the next trial
        self._control, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[3])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", COMMAND, root],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=PACKAGE_ENVIRONMENT if equipment.packages else dict[str, str](),
                cwd="/",
                start_new_session=True,
            )
        try:
            self._start(is_isolated)
        except BaseException:
            self.close()
            raise

    def _start(self, is_isolated: bool) -> None:
        setting = asdict(self._limits) | {"is_isolated": is_isolated, "prefix": sys.base_prefix}
        del setting["wall_seconds"]
        for name, value in asdict(self._equipment).items():
            is_least = name in setting
            setting[name] = max(value, setting[name]) if is_least else value
        self._control.settimeout(START_SECONDS)
        try:
            wire.send(self._control, setting)
            reply = wire.receive(self._control)
            if "unshared" in reply:
                _write_maps(self._process.pid)
                wire.send(self._control, {})
                reply = wire.receive(self._control)
            why = reply.get("error")
        except (EOFError, OSError, wire.WireError) as error:
            why = f"{error}; {self._last_words()}"
        if why is None:
            self._control.settimeout(None)
            why = self._probe()
        if why is not None:
            raise ConfigError(
                f"this machine does not let programs be isolated ({why}); allow user namespaces "
                f"(sysctl user.max_user_namespaces, in Docker --security-opt seccomp=unconfined), or give "
                f"{UNSANDBOXED} to run generated code with your rights"
            )

    def _probe(self) -> str | None:
        """Run what must pass, and say why it does not."""
        try:
            self._judge = self._prepare()
            verdict = self._run(PROBE, START_SECONDS)
        except (OSError, RuntimeError) as error:
            return str(error)
        if verdict.is_passed:
            return None
        return f"{verdict.outcome}: {verdict.detail}; {self._last_words()}"

    def _last_words(self) -> str:
        self._end()
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "the worker said nothing"

    def _prepare(self) -> socket.socket:
        """Have the next trial's sides started, and give the channel to its judge. Raises OSError if the worker is gone."""
        to_judge, judge_to_parent = socket.socketpair()
        judge_to_guest, guest_to_judge = socket.socketpair()
        channels = (judge_to_parent, judge_to_guest, guest_to_judge)
        try:
            socket.send_fds(self._control, [b"s"], [channel.fileno() for channel in channels])
        finally:
            for channel in channels:
                channel.close()
        return to_judge

    def run(self, trial: AnyTrial) -> Verdict:
        """Run a trial. Raises RuntimeError if the worker is gone, which no candidate can bring about."""
        return self._run(trial, self._limits.wall_seconds + trial.extra_seconds)

    def _run(self, trial: AnyTrial, seconds: float) -> Verdict:
        start = time.perf_counter()
        nonce = secrets.token_hex(16)
        answer = b""
        assert self._judge is not None, "a sandbox that is closed runs nothing"
        with self._judge as judge:
            judge.settimeout(seconds)
            outcome, detail = self._send(judge, trial, nonce)
            with contextlib.suppress(ConnectionError):
                self._judge = self._prepare()  # while this one runs
                if not outcome:
                    outcome, detail = self._verdict(judge, nonce, start)
                is_ended = outcome in ("exited", "no-verdict")
                self._control.sendall(b"w" if is_ended else b"e")
                answer = self._control.recv(wire.STATUS.size, socket.MSG_WAITALL)
        if len(answer) < wire.STATUS.size:
            raise RuntimeError(f"the worker of the sandbox is gone: {self._last_words()}")
        guest_code, judge_code, is_over = wire.STATUS.unpack(answer)
        if is_over and outcome in ("exited", "no-verdict"):
            outcome, detail = "memory", "its processes took more memory than they may together"
        elif outcome == "exited":
            outcome, detail = _why_exited(guest_code, detail)
        elif outcome == "no-verdict":
            is_cpu = -judge_code in (signal.SIGXCPU, signal.SIGKILL)
            outcome = "timeout-cpu" if is_cpu else "error"
        return Verdict(outcome, detail, time.perf_counter() - start)

    def _send(self, judge: socket.socket, trial: AnyTrial, nonce: str) -> tuple[str, str]:
        """Hand a trial to its judge, and give the outcome if that fails."""
        try:
            wire.send(judge, {**asdict(trial), "kind": trial.kind, "nonce": nonce})
        except TimeoutError:
            return "timeout-wall", "the tests did not start"
        except OSError:
            return "no-verdict", "the tests did not start"
        except wire.WireError as error:
            return "unsupported", str(error)
        return "", ""

    def _verdict(self, judge: socket.socket, nonce: str, start: float) -> tuple[str, str]:
        try:
            reply = wire.receive(judge)
        except TimeoutError:
            return "timeout-wall", f"no end after {time.perf_counter() - start:.1f} s"
        except (EOFError, OSError):
            return "no-verdict", "the tests ended without a verdict"
        except wire.WireError as error:
            return "unsupported", str(error)
        if not secrets.compare_digest(str(reply.get("nonce")), nonce):
            return "forged", "a verdict without the nonce"
        return str(reply["outcome"]), str(reply["detail"])

    def close(self) -> None:
        """End the worker and all it started."""
        if self._judge is not None:
            self._judge.close()
        self._end()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _end(self) -> None:
        self._control.close()  # at which it ends what it started
        try:
            self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def can_isolate() -> bool:
    """Say whether this machine lets a worker be isolated."""
    try:
        Sandbox().close()
    except ConfigError:
        return False
    return True


def _why_exited(code: int, detail: str) -> tuple[str, str]:
    """Tell time and signals from an exit."""
    if code == -signal.SIGXCPU:
        return "timeout-cpu", "its processor time is used up"
    if code < 0:
        with contextlib.suppress(ValueError):
            return "exited", f"ended by {signal.Signals(-code).name}"
    return "exited", f"{detail}, with code {code}"


def _write_maps(pid: int) -> None:
    """Make root in there somebody without rights out here: nobody if we are root, ourselves if not. Raises OSError."""
    folder = Path(f"/proc/{pid}")
    user, group = os.geteuid(), os.getegid()
    (folder / "setgroups").write_text("deny")
    for name, number in (("gid_map", group), ("uid_map", user)):
        try:
            (folder / name).write_text(f"0 {NOBODY if user == 0 else number} 1")
        except PermissionError:
            (folder / name).write_text(f"0 {number} 1")
