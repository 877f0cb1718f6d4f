"""The process that forks the sides of every trial, inside namespaces of its own, and watches what they take.

    parent ── zygote (pid 1 of the worker's namespaces) ── the sides of a trial (side.py)

It forks from an interpreter that has its modules loaded, and has the next trial's sides ready while one runs. Neither
program nor tests pass through here: the parent hands over sockets.

Started as `python -I -S`; imports the standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections import deque
from pathlib import Path

from megatron.evaluation.isolation import linux, wire
from megatron.evaluation.isolation.side import EXIT_SECONDS, Setting, Sides, Starter
from megatron.evaluation.isolation.watch import Watch, open_processes, socket_bytes

# Loaded before the first trial, for what programs import most.
PRELOADED = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "random", "re", "statistics",
    "string", "typing",
)  # fmt: skip
DEVICES = ("null", "random", "urandom")  # not zero: mapped, it is memory that counts for no limit
MOUNT_POINTS = ("/mnt", "/srv", "/media", "/opt", "/var", "/tmp")
MIN_SOCKETS = 32  # that a trial may have


def main() -> None:
    """Isolate this process, and fork what the parent asks for until it is gone."""
    control = socket.socket(fileno=0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setting = Setting(**wire.receive(control))
    for name in PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel is to choose from here
        Path("/proc/self/oom_score_adj").write_text("1000")
    if not setting.is_isolated:
        _preload(setting.packages, setting.preloaded)
        wire.send(control, {"ready": True})
        _serve(control, Starter(setting, None, -1), Watch(os.open("/proc", os.O_RDONLY), 0))
        return
    # Where an administrator has made buffers large, a few sockets are no crime.
    of_sockets = min(socket_bytes(), setting.memory // MIN_SOCKETS)
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
        own_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        watch = Watch(_make_root(setting), of_sockets)
        linux.drop_for_children()
        # Nor are those that it forks: nobody traces them or takes their descriptors.
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        starter = Starter(setting, linux.make_filter(), own_namespace)
    except OSError as error:
        wire.send(control, {"error": str(error)})
        return
    wire.send(control, {"ready": True})
    _serve(control, starter, watch)


def _preload(packages: list[str], names: list[str]) -> None:
    """Load what some tasks import; where namespaces are new already, for a process with threads cannot enter one."""
    sys.path.extend(packages)
    for name in names:
        importlib.import_module(name)


def _make_root(setting: Setting) -> int:
    """Make a root that holds the interpreter and the equipment, read-only, and nothing else. Raises OSError.

    Gives the descriptor of a /proc, which is not in that root.
    """
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
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # a change of users takes that away, and this, too
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
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
    processes = open_processes(root)
    if setting.has_processes:  # the kernel mounts a new one where there is one already
        linux.mount("/proc", f"{root}/proc", "", linux.MS_BIND | linux.MS_REC)
    linux.pivot_root(root)
    _preload(list(packages), setting.preloaded)
    again = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags
    linux.mount("none", "/", "", again)
    socket.sethostname("sandbox")
    return processes


def _serve(control: socket.socket, starter: Starter, watch: Watch) -> None:
    """Fork the sides of a trial for each `start`, end the oldest for each `end`; the parent's end is the end."""
    gc.collect()
    gc.freeze()
    trials: deque[Sides] = deque()
    limit, is_over = starter.setting.memory, False
    while True:
        if len(trials) == 2 and not is_over:  # one runs, and the next one waits
            is_over = _is_over(control, watch, limit)
            if is_over:
                trials[0].kill()
        request, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if request == b"s":
            channels = [socket.socket(fileno=number) for number in descriptors]
            trials.append(starter.start(*channels))
            for channel in channels:
                channel.close()
            if len(trials) == 1:
                # The first: what both trials' sides take without a program comes on top.
                limit += 2 * watch.total()
        elif request:
            # `w`: one closed its channel; let it say how it ended
            codes = trials.popleft().end(EXIT_SECONDS if request == b"w" else 0.0)
            control.sendall(wire.STATUS.pack(*codes, is_over))
            is_over = False
        else:
            for sides in trials:  # where there is no namespace, nothing else ends them
                sides.end(0.0)
            return


def _is_over(control: socket.socket, watch: Watch, limit: int) -> bool:
    """Watch until the parent asks for something, or say that a trial's processes take more than they may together."""
    while not select.select([control], [], [], watch.seconds)[0]:
        if watch.total() > limit:
            return True
    return False
