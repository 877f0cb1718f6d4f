"""Files that appear under their names whole or not at all: locked while they are written, forced to disk, renamed.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from megatron.errors import DataError
from megatron.whole_file import force_to_disk


def open_locked(path: Path) -> BinaryIO:
    """Open a file for writing that no other process writes; takes over what a killed one left."""
    file = open(path, "ab")  # noqa: SIM115 - the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other may have published the file between our open and our lock: then it is not ours to empty.
        is_free = os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        is_free = False
    except OSError:
        is_free = True  # a file system without locks
    if not is_free:
        file.close()
        raise DataError(f"{path} is being written by another process; wait for it to end")
    file.truncate(0)
    return file


def sync(file: BinaryIO) -> None:
    """Force what was written to disk."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let an interruption wait: between two renames it would lose the older set and the new one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread alone
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    # A mask would not do: another thread would take the signal, and Python interrupt this one.
    older = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in older.items():
            signal.signal(number, handler)
        for caught in received:
            signal.raise_signal(caught)


def publish(files: Sequence[tuple[Path, Path]], *, stale: Iterable[Path] = ()) -> None:
    """Rename (temporary, final) pairs of one folder, whose contents are on disk already, in the order given.

    Whoever looks for the last one first sees an older set, none, or the new set, never a mixture: the older files,
    and those of `stale` that have no successor, are removed before, the last one first. A single file is there at any
    moment, the older one or the new one.
    """
    with _signals_held():
        for _, final in reversed(files if len(files) > 1 else []):
            final.unlink(missing_ok=True)
        for path in stale:
            path.unlink(missing_ok=True)
        for temporary, final in files:
            temporary.replace(final)
    force_to_disk(files[-1][1].parent)
