"""Which checkpoint of a run's folder to go on from: the one that the tracker names, or the newest good one before it.

Judges a checkpoint by whatever it is handed for that. Changes nothing on disk but in `set_aside`. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron.checkpoint.checksums import read_checked, read_config, read_state
from megatron.checkpoint.files import parse_json_object, replace_durably, writing
from megatron.checkpoint.layout import (
    METADATA_FILE,
    TRACKER,
    checkpoint_folder,
    find_wrong_length,
    latest_iteration,
    saved_iterations,
)
from megatron.errors import CheckpointError
from megatron.whole_file import force_to_disk

Judge = Callable[[Path], str | None]  # what is wrong with a checkpoint, None if nothing is


@dataclass(frozen=True)
class Broken:
    """A checkpoint that cannot be gone on from."""

    folder: Path
    iteration: int
    problem: str


@dataclass(frozen=True)
class Choice:
    """The checkpoint to go on from."""

    folder: Path
    iteration: int
    broken: tuple[Broken, ...] = ()  # those that would have come first
    tracker_problem: str | None = None  # why it says nothing, other than that there is none
    note: str | None = None  # what people should know about the choice

    @property
    def problem(self) -> str | None:
        """Why this is not the checkpoint that should have been there, None if it is."""
        return self.broken[0].problem if self.broken else self.tracker_problem


def choose_checkpoint(root: Path, judge: Judge) -> Choice | None:
    """Choose from a run's folder; None in one without checkpoints.

    A tracker that is missing, is no number or names no checkpoint counts for nothing: all are looked at then, newest
    first. Otherwise only its own and older ones are: newer ones are of a past that was left. Raises CheckpointError
    when there are checkpoints and none is good.
    """
    if not root.is_dir():
        return None
    problem, tracked = None, None
    try:
        tracked = latest_iteration(root)
    except CheckpointError as error:
        problem = str(error)
    iterations = saved_iterations(root)
    if not iterations:
        if problem is not None:
            raise CheckpointError(problem)
        return None
    broken: list[Broken] = []
    for iteration in reversed([one for one in iterations if tracked is None or one <= tracked]):
        folder = checkpoint_folder(root, iteration)
        flaw = judge(folder) or _misplaced(folder, iteration)
        if flaw is None:
            note = _note(root, iterations, tracked)
            return Choice(folder, iteration, tuple(broken), problem, note)
        broken.append(Broken(folder, iteration, flaw))
    raise CheckpointError(
        f"{root} holds no checkpoint that is whole: {'; '.join(one.problem for one in broken[:3])}. Copy one there "
        f"again, or give another folder to start afresh"
    )


def _misplaced(folder: Path, iteration: int) -> str | None:
    """Notice a whole checkpoint under the name of another's."""
    saved = read_state(folder).get("iteration")
    return None if saved == iteration else f"{folder} holds the checkpoint of iteration {saved}"


def _note(root: Path, iterations: list[int], tracked: int | None) -> str | None:
    """Say what is unusual about a tracker or its absence."""
    names = ", ".join(checkpoint_folder(root, iteration).name for iteration in iterations[-5:])
    if tracked is None:
        return (
            f"{root / TRACKER} does not say which of {names} counts: taking the newest that is whole; write a number "
            f"into that file to choose, or give another folder to start afresh"
        )
    if tracked < iterations[-1]:
        return (
            f"{root / TRACKER} names iteration {tracked} beside {names}: newer ones than that do not count, and are "
            f"replaced when the run gets there"
        )
    return None


def find_flaw(folder: Path) -> str | None:
    """Look at what describes a checkpoint: as much as every process reads of it when a run starts."""
    try:
        read_state(folder)
        read_config(folder)
    except CheckpointError as error:
        return str(error)
    return None if (folder / METADATA_FILE).is_file() else f"{folder / METADATA_FILE} is missing"


def find_flaw_by_length(folder: Path) -> str | None:
    """Look at what describes a checkpoint and at the length of every file, but read no tensors."""
    flaw = find_flaw(folder)
    if flaw is not None:
        return flaw
    try:
        path = folder / METADATA_FILE
        files = parse_json_object(path, read_checked(folder, METADATA_FILE)).get("files", {})
    except CheckpointError as error:
        return str(error)
    return find_wrong_length(folder, files)


def set_aside(root: Path, choice: Choice) -> Iterator[tuple[Broken, Path]]:
    """Point the tracker at the choice, then give broken ones names that do not count. Yields them with those names.

    One process calls it. Whatever step a crash follows, the same choice is made again or the tracker names it.
    """
    replace_durably(root / TRACKER, f"{choice.iteration}\n".encode())
    for one in choice.broken:
        target, number = root / f"{one.folder.name}.broken", 1
        while target.exists():
            number += 1
            target = root / f"{one.folder.name}.broken-{number}"
        with writing(target):
            one.folder.rename(target)
            force_to_disk(root)
        yield one, target
