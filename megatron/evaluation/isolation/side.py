"""The processes of a trial: forked from one interpreter, isolated from everything and each other, ended as a whole.

    zygote ─┬─ init: pid 1 of the guest's namespace; it does nothing, and with it the kernel ends all that is in there
            ├─ guest: runs the candidate
            └─ judge: holds the tests; pid 1 of a namespace of its own

What a guest inherits is what it may know, nothing: neither program nor tests were ever in the zygote. Imports the
standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.evaluation.isolation import guest, judge, linux

EXIT_SECONDS = 2.0  # from the end of its channel to that of a process, on a busy machine
NUM_OWN = 7  # of the processes that count for a limit: the zygote, and two trials' three


@dataclass(frozen=True)
class Setting:
    """What a worker is told when it starts."""

    is_isolated: bool
    prefix: str  # of this interpreter
    cpu_seconds: int
    memory: int
    file_size: int
    num_processes: int
    num_files: int
    disk: int
    bounds_addresses: bool
    has_processes: bool
    mounts: list[str]
    packages: list[str]
    preloaded: list[str]


@dataclass(frozen=True)
class Sides:
    """The processes of one trial."""

    guest: int
    judge: int
    init: int | None = None  # None where there are no namespaces
    stack: ctypes.Array[ctypes.c_char] | None = None  # of init

    def kill(self) -> None:
        """Kill them and all that they started."""
        # None is reaped yet, so a number is still its own.
        for pid in (self.guest, self.judge, self.init):
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            if pid is not None and self.init is None:  # no namespace to end with it: its session
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def end(self, seconds: float) -> tuple[int, int]:
        """Give the guest and the judge so long to end by themselves, kill all, and give the exit codes of the two.

        A code is negative for a signal. When this returns, no process of the trial is left.
        """
        for pid in (self.guest, self.judge):
            if seconds > 0:
                pidfd = os.pidfd_open(pid)
                select.select([pidfd], [], [], seconds)
                os.close(pidfd)
        self.kill()
        codes = [
            os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (self.guest, self.judge)
        ]
        if self.init is not None:  # ends when its namespace is empty
            os.waitpid(self.init, 0)
        return codes[0], codes[1]


@dataclass
class Starter:
    """Forks the sides of trials."""

    setting: Setting
    filter_program: bytes | None
    own_namespace: int  # descriptor

    def start(
        self, to_parent: socket.socket, to_guest: socket.socket, to_judge: socket.socket
    ) -> Sides:
        """Fork both sides. They wait for the trial, of which they know nothing yet."""
        if not self.setting.is_isolated:
            guest_pid = self._fork(lambda: self._be_guest(to_judge))
            return Sides(guest_pid, self._fork(lambda: self._be_judge(to_parent, to_guest)))
        linux.unshare(linux.CLONE_NEWPID)  # of what is started next
        stack = linux.make_stack()
        init = linux.start_idle(stack)
        guest_pid = self._fork(lambda: self._be_guest(to_judge))
        linux.setns(self.own_namespace, linux.CLONE_NEWPID)
        linux.unshare(linux.CLONE_NEWPID)
        judge_pid = self._fork(lambda: self._be_judge(to_parent, to_guest))
        linux.setns(self.own_namespace, linux.CLONE_NEWPID)
        return Sides(guest_pid, judge_pid, init, stack)

    def _fork(self, work: Callable[[], Any]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 125
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            if self.setting.is_isolated:
                linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            work()
            code = 0
        except OSError as error:  # for the parent, if it fails before the descriptors are closed
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(code)

    def _be_guest(self, channel: socket.socket) -> None:
        self._isolate(channel)
        self._limit(self.setting.cpu_seconds, self.setting.memory)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        guest.run(socket.socket(fileno=3))

    def _be_judge(self, to_parent: socket.socket, to_guest: socket.socket) -> None:
        self._isolate(to_parent, to_guest)
        self._limit(4 * self.setting.cpu_seconds, 2 * self.setting.memory)
        judge.run(socket.socket(fileno=3), socket.socket(fileno=4))

    def _isolate(self, *channels: socket.socket) -> None:
        """Leave this process a /tmp of its own, the channels and no right. Raises OSError."""
        if not self.setting.is_isolated:
            _keep(*channels)
            return
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
        flags = linux.MS_NOSUID | linux.MS_NODEV
        size = self.setting.disk
        linux.mount("tmpfs", "/tmp", "tmpfs", flags, f"size={size},nr_inodes={size >> 15},mode=700")
        os.chdir("/tmp")
        if self.setting.has_processes:  # over the worker's, of this trial's own namespace
            linux.mount("proc", "/proc", "proc", flags | linux.MS_NOEXEC, "subset=pid")
        _keep(*channels)
        linux.drop_capabilities()
        if self.filter_program is not None:
            linux.install_filter(self.filter_program)

    def _limit(self, cpu_seconds: int, memory: int) -> None:
        setting = self.setting
        addresses = memory if setting.bounds_addresses else resource.RLIM_INFINITY
        for kind, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_DATA, memory),
            (resource.RLIMIT_AS, addresses),
            (resource.RLIMIT_FSIZE, setting.file_size),
            (resource.RLIMIT_NPROC, setting.num_processes + NUM_OWN),
            (resource.RLIMIT_NOFILE, setting.num_files),
        ):
            resource.setrlimit(kind, (value, value))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def _keep(*channels: socket.socket) -> None:
    """Close all descriptors but the channels, which become 3, 4 …; 0, 1 and 2 lead nowhere."""
    null = os.open("/dev/null", os.O_RDWR)
    copies = [os.dup(channel.fileno()) for channel in channels]
    kept = [null, null, null, *copies]
    high = [os.dup2(number, 200 + place) for place, number in enumerate(kept)]
    for place, number in enumerate(high):
        os.dup2(number, place)
    os.closerange(len(kept), 256)
