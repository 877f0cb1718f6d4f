"""Files that appear under their names whole or not at all, and are still there after a crash.

Written aside, forced to disk, renamed. Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def force_to_disk(path: Path) -> None:
    """Force a file to disk, or the names in a folder: a rename is durable only after that. Raises OSError, naming it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def force_all_to_disk(path: Path) -> None:
    """Force a file to disk, or a folder with all that is in it. Raises OSError."""
    for one in path.rglob("*"):  # nothing in a file
        force_to_disk(one)
    force_to_disk(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish_whole(aside: Path, path: Path) -> None:
    """Force a file or a folder to disk, and give it its name, in place of what has it. Raises OSError.

    A folder cannot be replaced in one step; a crash may leave none of that name, never part of one.
    """
    force_all_to_disk(aside)
    remove(path)
    aside.rename(path)
    force_to_disk(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of `path` in one step if the block ends well, and else goes.

    A crash leaves the old content or the new, never part of it. Raises OSError.
    """
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        error.filename = error.filename or str(aside)
        raise
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    force_to_disk(path.parent)
