"""Where the checkpoints of a run lie, and which of them counts.

    SAVE/latest_checkpointed_iteration.txt     the tracker: the iteration to continue from
    SAVE/iter_0000200/metadata.json            every tensor: shape, dtype, and which file holds which part
    SAVE/iter_0000200/state.json, config.json  the caller's values
    SAVE/iter_0000200/rank_00000.safetensors   parts of tensors, as rank 0 wrote them
    SAVE/iter_0000200/SHA256SUMS               the hash of each of these files
    SAVE/iter_0000200.tmp-XXXXXXXX/            a save under way, or one that died
    SAVE/iter_0000200.old/                     a checkpoint being replaced by one of the same iteration

Names and files only; knows nothing of tensors and processes.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from megatron.checkpoint.files import incomplete, replace_durably
from megatron.errors import CheckpointError
from megatron.whole_file import force_to_disk

TRACKER = "latest_checkpointed_iteration.txt"
METADATA_FILE = "metadata.json"
STATE_FILE = "state.json"
CONFIG_FILE = "config.json"

_FOLDER = re.compile(r"iter_(\d{7,})")
_SIDE_FOLDER = re.compile(r"iter_\d{7,}\.tmp-[0-9a-f]{8}")
_OLD = ".old"


def rank_file(rank: int) -> str:
    """Name the file that a rank writes its parts of tensors to."""
    return f"rank_{rank:05d}.safetensors"


def checkpoint_folder(root: Path, iteration: int) -> Path:
    """Give the folder of an iteration's checkpoint, whether it exists or not.

    Where a crash cut the replacement of a checkpoint in two, that is the one which was to be replaced.
    """
    folder = root / f"iter_{iteration:07d}"
    old = _old(folder)
    return old if old.is_dir() and not folder.is_dir() else folder


def is_checkpoint_folder(path: Path) -> bool:
    """Tell whether this is the folder of one checkpoint, by its name, rather than that of a run."""
    return _FOLDER.fullmatch(path.name) is not None and not (path / TRACKER).exists()


def latest_iteration(root: Path) -> int | None:
    """Read the tracker: the iteration to continue from, None in a folder without one.

    Raises CheckpointError when the tracker holds no iteration or names one that has no folder.
    """
    tracker = root / TRACKER
    try:
        text = tracker.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{tracker} cannot be read: {error.strerror}") from error
    if not re.fullmatch(rb"\d{1,12}\s*", text):
        raise CheckpointError(
            f"{tracker} holds {text[:40]!r}, not the number of an iteration; write the iteration of a "
            f"complete iter_ folder into it"
        )
    iteration = int(text)
    folder = checkpoint_folder(root, iteration)
    if not folder.is_dir():
        raise CheckpointError(
            f"{tracker} names iteration {iteration} and {folder} does not exist; {_offer(root)}"
        )
    return iteration


def find_checkpoint(path: Path, iteration: int | None = None) -> Path:
    """Find a checkpoint's folder from that folder or from the root of a run (its latest, or the iteration asked for).

    Raises CheckpointError when there is none.
    """
    if (path / METADATA_FILE).is_file():
        if iteration is not None:
            raise CheckpointError(
                f"{path} is one checkpoint and iteration {iteration} is asked for; give the folder above it, "
                f"or leave the iteration out"
            )
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; give a run's --save or one of its iter_ folders"
        )
    if is_checkpoint_folder(path):
        raise incomplete(path / METADATA_FILE)
    if iteration is None:
        iteration = latest_iteration(path)
    if iteration is None:
        raise CheckpointError(f"{path} holds no checkpoint (no {TRACKER}); {_offer(path)}")
    folder = checkpoint_folder(path, iteration)
    if not folder.is_dir():
        raise CheckpointError(f"{path} has no checkpoint of iteration {iteration}; {_offer(path)}")
    return folder


def find_wrong_length(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """Name the first file of a checkpoint, by {name: bytes}, that is missing or has another length; None if none is."""
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (actual := path.stat().st_size) != size:
            return (
                f"{path} has {actual} bytes and {size} were written: it is cut short or was changed"
            )
    return None


def saved_iterations(root: Path) -> list[int]:
    """Give the iterations that `checkpoint_folder` finds a folder of, ascending."""
    names = (folder.name.removesuffix(_OLD) for folder in root.iterdir() if folder.is_dir())
    return sorted({int(match[1]) for match in map(_FOLDER.fullmatch, names) if match})


def prepare_side_folder(root: Path, iteration: int) -> Path:
    """Clear what dead saves left and make an empty folder to write a checkpoint into. One process calls it."""
    root.mkdir(parents=True, exist_ok=True)
    for folder in list(root.iterdir()):
        if _SIDE_FOLDER.fullmatch(folder.name):
            _remove(folder)
        elif folder.name.endswith(_OLD) and _FOLDER.fullmatch(folder.name.removesuffix(_OLD)):
            _end_replacement(folder)
    side = root / f"iter_{iteration:07d}.tmp-{uuid.uuid4().hex[:8]}"
    side.mkdir()
    return side


def publish(root: Path, side: Path, iteration: int) -> Path:
    """Give a complete, durable side folder its name and point the tracker at it. One process calls it.

    Whatever step a crash follows, the tracker names a complete checkpoint.
    """
    folder = root / f"iter_{iteration:07d}"
    if folder.exists():
        folder.rename(_old(folder))
    side.rename(folder)
    force_to_disk(root)
    replace_durably(root / TRACKER, f"{iteration}\n".encode())
    _remove(_old(folder))
    return folder


def _remove(folder: Path) -> None:
    """Remove what no longer counts as far as the disk lets us: a save does not fail for it, the next one tries again.

    Over NFS a folder cannot go while a dying process still has one of its files open.
    """
    shutil.rmtree(folder, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(folder.name + _OLD)


def _end_replacement(old: Path) -> None:
    """Finish what a crash cut in two: the old checkpoint goes if the new one is there, else it comes back."""
    folder = old.with_name(old.name.removesuffix(_OLD))
    if folder.exists():
        _remove(old)
    else:
        old.rename(folder)
        force_to_disk(old.parent)


def _offer(root: Path) -> str:
    iterations = saved_iterations(root)
    if not iterations:
        return "give the folder that a run had as --save"
    shown = ", ".join(str(iteration) for iteration in iterations[-5:])
    return f"it has checkpoints of iterations {'… ' if len(iterations) > 5 else ''}{shown}"
