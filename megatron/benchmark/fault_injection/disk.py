"""What a disk holds after the power failed: only what was forced to it. Linux's names and files, nothing of tensors.

A killed process leaves behind all that it wrote. After a power failure the content of files that were not synced may
be gone, and so may the names of files whose folder was not: this follows what a process does, and takes it away.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Name:
    """A name that its folder may still forget: made, or given to what had another before."""

    path: Path
    source: Path | None = None
    replaced: bytes | None = None  # the file that had the name


class UnsyncedDisk:
    """The changes of one process that are not yet forced to the disk, oldest first."""

    def __init__(self) -> None:
        self._names: list[_Name] = []
        self._contents: list[Path] = []

    def open(self, path: Path) -> None:
        """A file is about to be opened for writing."""
        if not path.exists():
            self._names.append(_Name(path))
        if path not in self._contents:
            self._contents.append(path)

    def make(self, folder: Path) -> None:
        """A folder is about to be made."""
        self._names.append(_Name(folder))

    def rename(self, source: Path, path: Path) -> None:
        """Something is about to get another name, perhaps that of a file."""
        replaced = path.read_bytes() if path.is_file() else None
        for name in self._names:
            name.path = _moved(name.path, source, path)
        self._contents = [_moved(one, source, path) for one in self._contents]
        self._names.append(_Name(path, source, replaced))

    def sync(self, path: Path) -> None:
        """A file or folder has been forced to the disk."""
        self._names = [name for name in self._names if name.path.parent != path]
        self._contents = [one for one in self._contents if one != path]

    def lose_data(self) -> None:
        """Halve every file whose content was not forced to the disk."""
        for path in self._contents:
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)

    def lose_names(self) -> None:
        """Undo, newest first, every name that was not, too."""
        self.lose_data()
        while self._names:
            name = self._names.pop()
            if name.source is not None:
                if name.path.exists():
                    name.path.rename(name.source)
                for older in self._names:
                    older.path = _moved(older.path, name.path, name.source)
                if name.replaced is not None:
                    name.path.write_bytes(name.replaced)
            elif name.path.is_dir():
                shutil.rmtree(name.path)
            else:
                name.path.unlink(missing_ok=True)

    def lose_older_names(self) -> None:
        """Undo all of them but the newest: disks keep an order only where they were told to."""
        kept = None
        if self._names and self._names[-1].path.exists():
            newest = self._names.pop()
            kept = newest.path.rename(newest.path.with_name(".kept"))
            if newest.replaced is not None:
                newest.path.write_bytes(newest.replaced)
        self.lose_names()
        if kept is None or not kept.exists():
            return
        if newest.path.is_dir():
            shutil.rmtree(
                kept
            )  # its name is taken again: then this change did not reach the disk either
        else:
            kept.rename(newest.path)


def _moved(path: Path, source: Path, target: Path) -> Path:
    """Give the new path of something if it lies in what is renamed."""
    return target / path.relative_to(source) if path.is_relative_to(source) else path
