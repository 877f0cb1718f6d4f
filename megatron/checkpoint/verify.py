"""Reading a checkpoint's files whole, to see that they are what was written.

Knows nothing of the tensors in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist

from megatron.checkpoint.agreement import gather_on_first, on_first_rank
from megatron.checkpoint.checksums import check_content, read_sums
from megatron.checkpoint.metadata import read_metadata
from megatron.errors import CheckpointError


def verify_files(folder: Path, on_bytes: Callable[[int], object] | None = None) -> None:
    """Read all files of a checkpoint. Raises CheckpointError naming the first that is damaged or missing."""
    sums = _checked_sums(folder)
    _check({folder / name: digest for name, digest in sums.items()}, on_bytes)


def verify_files_together(folder: Path) -> None:
    """Read all files of a checkpoint, each on one rank. Collective over the world.

    Every rank raises the same CheckpointError if any file is damaged or missing.
    """
    sums = on_first_rank(lambda: _checked_sums(folder))
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # By turns in the order of names: in the layout that wrote it each rank takes its own file, which it reads next.
    names = sorted(sums, key=lambda name: (not name.startswith("rank_"), name))
    mine = {folder / name: sums[name] for name in names[rank::size]}
    gather_on_first(lambda: _check(mine))


def find_damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, None if nothing is. Collective over the world."""
    try:
        verify_files_together(folder)
    except CheckpointError as error:
        return str(error)
    return None


def _check(digests: Mapping[Path, str], on_bytes: Callable[[int], object] | None = None) -> int:
    """Compare files with their hashes; give their number."""
    for path, digest in digests.items():
        check_content(path, digest, on_bytes)
    return len(digests)


def _checked_sums(folder: Path) -> dict[str, str]:
    """Give the hashes of a checkpoint that describes itself well and whose files have their lengths."""
    read_metadata(folder)
    return read_sums(folder)
