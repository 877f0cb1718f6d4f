"""The process that forks the two sides of every trial, inside namespaces of its own.

    parent ── zygote (pid 1 of the worker's namespaces) ── judge: holds the tests
                                                        └─ guest: runs the candidate

Both sides are forked from an interpreter that has its modules loaded. Each is the child of a pid 1 of its own, whose
death takes all that it started along. Neither program nor tests pass through here: the parent hands over sockets,
and what a guest inherits is what it may know, nothing.

Started as `python -I -S`; imports the standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.evaluation import guest, judge, linux, wire

# Loaded before the first trial, for what programs import most.
PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics",
    "string", "typing",
)  # fmt: skip
DEVICES = ("null", "random", "urandom")  # not zero: mapped, it is memory that counts for no limit
MOUNT_POINTS = ("/mnt", "/srv", "/media", "/opt", "/var", "/tmp")
EXIT_SECONDS = 0.2


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


def main() -> None:
    """Isolate this process, and fork what the parent asks for until it is gone."""
    control = socket.socket(fileno=0)
    setting = Setting(**wire.receive(control))
    for name in PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel is to choose from here
        Path("/proc/self/oom_score_adj").write_text("1000")
    if not setting.is_isolated:
        _preload(setting.packages, setting.preloaded)
        wire.send(control, {"ready": True})
        _serve(control, setting, None, -1)
        return
    try:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
        linux.unshare(linux.NAMESPACE_FLAGS)
    except OSError as error:
        wire.send(control, {"error": str(error)})
        return
    wire.send(control, {"unshared": os.getpid()})
    wire.receive(control)  # the parent has written the maps of users and groups
    child = os.fork()
    if child:
        control.close()
        os.waitpid(child, 0)
        return
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        _make_root(setting)
        filter_program = linux.make_filter()
    except OSError as error:
        wire.send(control, {"error": str(error)})
        return
    wire.send(control, {"ready": True})
    _serve(control, setting, filter_program, own_namespace)


def _preload(packages: list[str], names: list[str]) -> None:
    """Load what some tasks import; where namespaces are new already, for a process with threads cannot enter one."""
    sys.path.extend(packages)
    for name in names:
        importlib.import_module(name)


def _make_root(setting: Setting) -> None:
    """Make a root that holds the interpreter and the equipment, read-only, and nothing else. Raises OSError."""
    links = {name: Path(f"/{name}").readlink() for name in ("lib", "lib64", "bin") if Path(f"/{name}").is_symlink()}  # fmt: skip
    folders = ["/usr"]
    wanted = [f"/{name}" for name in ("lib", "lib64", "bin") if name not in links]
    wanted += sorted([setting.prefix, *setting.mounts])
    for path in wanted:
        if Path(path).exists() and not any(Path(f) in Path(path, "x").parents for f in folders):
            folders.append(path)
    # Opened as the user who started us: a home that others may not enter is no hindrance, and they do not see it.
    opened = {folder: os.open(folder, os.O_PATH) for folder in folders}
    packages = {f"/packages/{number}": path for number, path in enumerate(setting.packages)}
    opened |= {target: os.open(path, os.O_PATH) for target, path in packages.items()}
    opened |= {f"/dev/{name}": os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    os.setgid(0)
    os.setuid(0)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    root = next(path for path in MOUNT_POINTS if Path(path).is_dir())
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", root, "tmpfs", flags, "size=8m,mode=755")
    for path, descriptor in opened.items():
        target = f"{root}{path}"
        source = f"/proc/self/fd/{descriptor}"
        if Path(source).is_dir():
            Path(target).mkdir(parents=True)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch()
        linux.mount(source, target, "", linux.MS_BIND | linux.MS_REC)
        os.close(descriptor)
        if not path.startswith("/dev/"):
            linux.set_read_only(target)
    for name, link in links.items():
        Path(root, name).symlink_to(link)
    for name in ("tmp", "proc"):
        Path(root, name).mkdir(exist_ok=True)
    if setting.has_processes:  # the kernel mounts a new one where there is one already
        linux.mount("/proc", f"{root}/proc", "", linux.MS_BIND | linux.MS_REC)
    linux.pivot_root(root)
    _preload(list(packages), setting.preloaded)
    again = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags
    linux.mount("none", "/", "", again)
    socket.sethostname("sandbox")


def _serve(
    control: socket.socket, setting: Setting, filter_program: bytes | None, own_namespace: int
) -> None:
    """Fork a judge and a guest for each `start`, kill both at `end`; the parent's end is the end."""
    gc.collect()
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not request:
            return
        to_parent, to_guest, to_judge = (socket.socket(fileno=number) for number in descriptors)
        start = _Starter(setting, filter_program, own_namespace)
        # The guest first: what the judge has was never in a process that the guest comes from.
        pids = [
            start(lambda: guest.run(socket.socket(fileno=3)), (to_judge,), limits=True),
            start(
                lambda: judge.run(socket.socket(fileno=3), socket.socket(fileno=4)),
                (to_parent, to_guest),
                limits=False,
            ),
        ]
        for end in (to_parent, to_guest, to_judge):
            end.close()
        command = control.recv(1)
        if command == b"w":  # the guest closed its channel: let it say how it ended
            pidfd = os.pidfd_open(pids[0])
            select.select([pidfd], [], [], EXIT_SECONDS)
            os.close(pidfd)
        statuses = [_end(pid, setting.is_isolated) for pid in pids]
        if not command:
            return
        control.sendall(struct.pack("!ii", *statuses))


def _end(pid: int, is_isolated: bool) -> int:
    """Kill all of a side and give the exit status of what it was for, negative for a signal."""
    # A side that has ended is not reaped yet, so the number is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL) if is_isolated else os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class _Starter:
    """Forks sides."""

    setting: Setting
    filter_program: bytes | None
    own_namespace: int  # descriptor

    def __call__(
        self, work: Callable[[], Any], channels: tuple[socket.socket, ...], *, limits: bool
    ) -> int:
        """Fork a side and give the pid of its pid 1."""
        if self.setting.is_isolated:
            linux.unshare(linux.CLONE_NEWPID)  # of the next fork
        pid = os.fork()
        if pid:
            if self.setting.is_isolated:
                linux.setns(self.own_namespace, linux.CLONE_NEWPID)
            return pid
        code = 125
        try:
            self._isolate(channels, limits)
            child = os.fork()
            if child:
                # Both channels are the child's: here they would keep its partner from seeing its end.
                os.closerange(3, 5)
                code = _reap(child)
            else:
                code = 0
                if limits:
                    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
                work()
        finally:
            os._exit(code)

    def _isolate(self, channels: tuple[socket.socket, ...], limits: bool) -> None:
        """Leave this process the channels and no right. Raises OSError."""
        os.setsid()
        if self.setting.is_isolated:
            linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
            flags = linux.MS_NOSUID | linux.MS_NODEV
            size = self.setting.disk
            options = f"size={size},nr_inodes={size >> 15},mode=700"
            linux.mount("tmpfs", "/tmp", "tmpfs", flags, options)
            os.chdir("/tmp")
            if self.setting.has_processes:  # over the worker's, of this trial's own namespace
                linux.mount("proc", "/proc", "proc", flags | linux.MS_NOEXEC, "subset=pid")
            linux.prctl(linux.PR_SET_DUMPABLE, 0)  # nobody traces it or takes its descriptors
        null = os.open("/dev/null", os.O_RDWR)
        copies = [os.dup(channel.fileno()) for channel in channels]
        kept = [null, null, null, *copies]
        high = [os.dup2(number, 200 + place) for place, number in enumerate(kept)]
        for place, number in enumerate(high):
            os.dup2(number, place)
        os.closerange(len(kept), 256)
        setting = self.setting
        for kind, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, setting.cpu_seconds if limits else 4 * setting.cpu_seconds),
            (resource.RLIMIT_DATA, setting.memory if limits else 2 * setting.memory),
            (resource.RLIMIT_AS, _address_space(setting, limits)),
            (resource.RLIMIT_FSIZE, setting.file_size),
            (resource.RLIMIT_NPROC, setting.num_processes),
            (resource.RLIMIT_NOFILE, setting.num_files),
        ):
            hard = value + 1 if kind == resource.RLIMIT_CPU else value
            resource.setrlimit(kind, (value, hard))
        if setting.is_isolated:
            linux.drop_capabilities()
            if self.filter_program is not None:
                linux.install_filter(self.filter_program)


def _address_space(setting: Setting, limits: bool) -> int:
    """Give the bytes of addresses that a side may have."""
    if not setting.bounds_addresses:
        return resource.RLIM_INFINITY
    return setting.memory if limits else 2 * setting.memory


def _reap(child: int) -> int:
    """Be pid 1: collect the dead until the side itself is, and give its exit code, 128 and more for a signal."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
