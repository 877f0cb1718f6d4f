"""What the processes of a worker take together: no limit of the kernel's bounds that without rights over cgroups.

Counted are pages of their own, swapped ones too, page tables, and the most that a socket can hold. A page that several
share, as after a fork, counts in each. Files in /tmp have a limit of their own. Imports the standard library only.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from megatron.evaluation.isolation import linux

WATCH_SECONDS = 0.02
MAX_SHARE = 0.1  # of the time that is spent on looking
# that a socket may have sent and nobody received
SENT_BYTES = Path("/proc/sys/net/core/wmem_default")
SENDERS = 11  # whose bytes one socket may hold: net.unix.max_dgram_qlen, and itself
KILOBYTES = re.compile(rb"^(?:RssAnon|VmSwap|VmPTE):\s*(\d+) kB", re.MULTILINE)
PARENT = re.compile(rb"^PPid:\s*(\d+)", re.MULTILINE)


class Watch:
    """Looks at the processes that descend from this one."""

    def __init__(self, folder: int, socket_bytes: int) -> None:
        """folder: descriptor of a /proc, of this process's namespace or one around it. socket_bytes: of each socket."""
        self._folder, self._socket_bytes = folder, socket_bytes
        self.seconds = WATCH_SECONDS  # until the next look

    def total(self) -> int:
        """Give the bytes of all processes below this one, of which there is one. Raises OSError if none is seen."""
        start = time.monotonic()
        own = int(os.readlink("self", dir_fd=self._folder))
        parents: dict[int, int] = {}
        sizes: dict[int, int] = {}
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if entry.name.isdecimal()]
        for name in names:
            status = self._read(f"{name}/status")
            found = PARENT.search(status)
            if found is not None:
                parents[int(name)] = int(found[1])
                sizes[int(name)] = sum(map(int, KILOBYTES.findall(status))) << 10
        sizes.pop(own, None)
        # pid 1 of a namespace sees nothing but what is below it
        below = [n for pid, n in sizes.items() if own == 1 or _is_below(pid, own, parents)]
        if not below:
            raise OSError("/proc hides the processes whose memory is to be watched (hidepid)")
        total = sum(below)
        if self._socket_bytes:
            total += self._read("self/net/unix").count(b"\n") * self._socket_bytes
        self.seconds = max(WATCH_SECONDS, (time.monotonic() - start) / MAX_SHARE)
        return total

    def _read(self, name: str) -> bytes:
        try:
            with open(os.open(name, os.O_RDONLY, dir_fd=self._folder), "rb") as file:
                return file.read()
        except OSError:  # it has ended
            return b""


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    for _ in range(len(parents)):  # what is read while processes come and go may be a circle
        pid = parents.get(pid, 0)
        if pid in (ancestor, 0):
            break
    return pid == ancestor


def open_processes(root: str) -> int:
    """Open a /proc of this namespace's processes alone, or the machine's where that is not allowed, as in a container.

    root: of a tree that has a folder proc.
    """
    target = f"{root}/proc"
    try:
        linux.mount("proc", target, "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    except OSError:
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    linux.unmount(target)
    return descriptor


def socket_bytes() -> int:
    """Give the most that a socket of a new network can hold while its senders are closed. Asked outside of it."""
    try:
        return SENDERS * int(SENT_BYTES.read_text())
    except OSError:  # a container's network
        return SENDERS * 212_992
