"""A folder of results that appears complete or not at all."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron.errors import ConfigError
from megatron.whole_file import force_all_to_disk, force_to_disk


def add_folders(parser: argparse.ArgumentParser, *, load: str, replaces: str) -> None:
    """Add what every converting tool takes: --load, whose help is given, --save and --overwrite."""
    parser.add_argument("--load", type=Path, required=True, metavar="DIR", help=load)
    parser.add_argument(
        "--save", type=Path, required=True, metavar="DIR", help="folder to write; made if missing"
    )
    parser.add_argument("--overwrite", action="store_true", help=f"replace an earlier {replaces}")


def check_target(path: Path, may_replace: Callable[[Path], bool] | None) -> None:
    """Raise ConfigError unless path is free, empty, or a folder that may be replaced."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"--save {path} is a file; give the name of a folder")
    if not any(path.iterdir()):
        return
    if may_replace is None:
        raise ConfigError(f"--save {path} is not empty; give another folder, or --overwrite")
    if not may_replace(path):
        raise ConfigError(
            f"--overwrite replaces an earlier export or import, and by its files {path} is none (exports of "
            f"earlier versions have no mark); give another folder, or remove it by hand"
        )


@contextlib.contextmanager
def new_folder(path: Path, may_replace: Callable[[Path], bool] | None) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` in one step when the block ends well, and else goes.

    A non-empty folder of that name is replaced if may_replace says so of it, else it is a ConfigError.
    """
    check_target(path, may_replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    side.mkdir()
    is_done = False
    try:
        yield side
        force_all_to_disk(side)
        _give_name(side, path)
        is_done = True
    finally:
        if not is_done:
            shutil.rmtree(side, ignore_errors=True)


def _give_name(side: Path, path: Path) -> None:
    old = path.with_name(f"{side.name}.old")
    if path.exists():
        path.rename(old)
    side.rename(path)
    force_to_disk(path.parent)
    if old.exists():
        shutil.rmtree(old)
