"""Reading a checkpoint's files whole, to see that they are what was written.

Knows nothing of the tensors in them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch.distributed as dist

from megatron.checkpoint.checksums import SUMS_FILE, check_content, forget_cached, read_sums
from megatron.checkpoint.layout import METADATA_FILE
from megatron.checkpoint.metadata import read_metadata
from megatron.errors import CheckpointError
from megatron.logging import get_logger
from megatron.parallel.agreement import gather_on_first, on_first_rank

logger = get_logger(__name__)


def verify_files(folder: Path, on_bytes: Callable[[int], object] | None = None) -> None:
    """Read all files of a checkpoint. Raises CheckpointError naming the first that is damaged or missing."""
    sums = _checked_sums(folder)
    _check({folder / name: digest for name, digest in sums.items()}, on_bytes)


def verify_files_together(folder: Path, *, shift: int = 0, is_uncached: bool = False) -> None:
    """Read all files of a checkpoint, each on one rank. Collective over the world.

    shift: by how many ranks the files move on. is_uncached: from disk, whatever the system remembers of them.
    Every rank raises the same CheckpointError if any file is damaged or missing.
    """
    sums = on_first_rank(lambda: _checked_sums(folder, is_uncached))
    rank, size = _rank_and_size()
    # By turns in the order of names: in the layout that wrote it each rank takes its own file, which it reads next.
    names = sorted(sums, key=lambda name: (not name.startswith("rank_"), name))
    mine = {folder / name: sums[name] for name in names[(rank + shift) % size :: size]}
    gather_on_first(lambda: _check_here(mine, is_uncached))


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, None if nothing is. Collective over the world.

    What one process finds has to be there for another one too, of another node if there is one, and on the disk: a
    node that reads wrong condemns no checkpoint. If it keeps reading wrong, every rank raises a CheckpointError.
    """
    problem = _problem(folder)
    if problem is None:
        return None
    _, size = _rank_and_size()
    if _problem(folder, shift=size // 2, is_uncached=True) is not None:
        return problem
    again = _problem(folder, is_uncached=True)
    if again is not None:
        raise CheckpointError(
            f"{again}. Another process reads it as it was written, so the memory, disk or network of that node is at "
            f"fault: start without it. Nothing was changed"
        )
    if _rank_and_size()[0] == 0:
        logger.warning(f"{problem}. It was whole when it was read again: going on with it")
    return None


def _problem(folder: Path, *, shift: int = 0, is_uncached: bool = False) -> str | None:
    """Read all files of a checkpoint together and say what is wrong."""
    try:
        verify_files_together(folder, shift=shift, is_uncached=is_uncached)
    except CheckpointError as error:
        return str(error)
    return None


def _check_here(digests: Mapping[Path, str], is_uncached: bool) -> int:
    """Compare files with their hashes, and say which node finds them damaged."""
    try:
        if is_uncached:
            _forget(digests)
        return _check(digests)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (read on {socket.gethostname()})") from error


def _forget(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # reading it says so
            forget_cached(path)


def _check(digests: Mapping[Path, str], on_bytes: Callable[[int], object] | None = None) -> int:
    """Compare files with their hashes; give their number."""
    for path, digest in digests.items():
        check_content(path, digest, on_bytes)
    return len(digests)


def _checked_sums(folder: Path, is_uncached: bool = False) -> dict[str, str]:
    """Give the hashes of a checkpoint that describes itself well and whose files have their lengths."""
    if is_uncached:
        _forget(folder / name for name in (METADATA_FILE, SUMS_FILE))
    read_metadata(folder)
    return read_sums(folder)


def _rank_and_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
