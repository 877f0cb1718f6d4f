"""Counts the moments of a process, and acts at the one that is asked for. No torch.

What changes files of the run's folder is seen by an audit hook of the interpreter and a wrapper of `os.fsync`, which
stand before the change; other moments are announced by whoever calls `Tripwire.passes`. The code under test has no
part in it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from megatron.benchmark.fault_injection.disk import UnsyncedDisk
from megatron.benchmark.fault_injection.fault import Fault

_ITERATION = re.compile(r"iter_\d{7,}")
_SIDE = re.compile(r"\.(tmp|deleted)-[0-9a-f]{8}")
# Written by libraries, for people; a crash may cost their last lines.
_IGNORED = re.compile(r"tensorboard(/|$)")
# What a power failure may not cost: the rest is written again, or is a log.
_DURABLE = re.compile(r"iter|latest_checkpointed_iteration")
_WRITES = os.O_WRONLY | os.O_RDWR


class Tripwire:
    """One process's moments. `install` makes it see those on files."""

    def __init__(
        self,
        root: Path,
        fault: Fault | None,
        journal: Path,
        *,
        marker: Path | None = None,
        records: bool = False,
    ) -> None:
        """Act out fault under the folder root, having made the file marker.

        Notes go to the file journal; records: one for every moment, too.
        """
        self._root = root.absolute()
        self._fault = fault
        self._records = records
        self._marker = marker
        self._counts: Counter[str] = Counter()
        self._disk = UnsyncedDisk()
        self._lock = threading.RLock()
        self._busy = threading.local()
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, kind: str, **values: Any) -> None:
        """Write a line to the journal: it is there even if this process ends now."""
        line = json.dumps({"kind": kind, "time": time.monotonic(), **values}) + "\n"
        os.write(self._journal, line.encode())

    def passes(self, moment: str, tear: Callable[[], object] | None = None) -> None:
        """Count a moment that is about to come; act if it is the one. tear: does half of what is about to be done."""
        with self._lock:
            self._counts[moment] += 1
            if self._records:
                self.note("moment", moment=moment)
            fault = self._fault
            if fault is None or (fault.moment, fault.occurrence) != (moment, self._counts[moment]):
                return
            self.note("fired")
            self._busy.is_so = True  # what is done to files here is no moment
            try:
                if self._marker is not None:
                    self._marker.touch()
                self._act(fault, tear)
            finally:
                self._busy.is_so = False

    def _act(self, fault: Fault, tear: Callable[[], object] | None) -> None:
        match fault.action:
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case "memory":
                raise MemoryError("injected")
            case "error":
                raise RuntimeError("injected")
            case "full":
                if tear is not None:
                    tear()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "broken":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            case "tear":
                if tear is not None:
                    tear()
                _die()
            case "lose data":
                self._disk.lose_data()
                _die()
            case "lose names":
                self._disk.lose_names()
                _die()
            case "lose older names":
                self._disk.lose_older_names()
                _die()
            case "kill":
                _die()

    def install(self) -> None:
        """See the changes of files under root from now on, for as long as this process lives."""
        sys.addaudithook(self._audit)
        real_fsync = os.fsync

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            name = self.name_of(path)
            if name is None or self._is_busy:
                return real_fsync(descriptor)
            is_file = path.is_file()
            self.passes(f"fsync {name}", (lambda: _halve(path)) if is_file else None)
            real_fsync(descriptor)
            with self._lock:
                self._disk.sync(path)
            return None

        os.fsync = fsync  # type: ignore[assignment]

    def name_of(self, path: str | Path) -> str | None:
        """Name a file of the run's folder as moments do, "." for the folder; None for any other."""
        absolute = Path(path).absolute()
        if not absolute.is_relative_to(self._root):
            return None
        name = absolute.relative_to(self._root).as_posix()
        if _IGNORED.match(name):
            return None
        return _SIDE.sub(r".\1", _ITERATION.sub("iter", name))

    @property
    def _is_busy(self) -> bool:
        return getattr(self._busy, "is_so", False)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._is_busy:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITES:
                self._see("open", path, None)
        elif event == "os.rename":
            self._see("rename", args[0], None, args[1])
        elif event == "os.mkdir":
            self._see("mkdir", args[0], args[2])
        elif event == "os.remove":
            self._see("remove", args[0], args[1])
        elif event == "os.rmdir":
            self._see("rmdir", args[0], args[1])

    def _see(self, word: str, given: Any, folder: int | None, target: Any = None) -> None:
        path = Path(os.fsdecode(given))
        if folder is not None and folder >= 0:
            path = Path(f"/proc/self/fd/{folder}").readlink() / path
        path = path.absolute()
        name = self.name_of(path)
        if name is None:
            return
        self.passes(f"{word} {name}")
        if not _DURABLE.match(name):
            return
        with self._lock:
            self._busy.is_so = True
            try:
                if word == "open":
                    self._disk.open(path)
                elif word == "mkdir":
                    self._disk.make(path)
                elif word == "rename":
                    self._disk.rename(path, Path(os.fsdecode(target)).absolute())
            finally:
                self._busy.is_so = False


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a killed process runs on")
