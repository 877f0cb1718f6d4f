"""What a disturbed run left, held against the run that nothing happened to: equal bit by bit, or what differs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.layout import (
    TRACKER,
    checkpoint_folder,
    find_checkpoint,
    latest_iteration,
    saved_iterations,
)
from megatron.checkpoint.reader import CheckpointReader
from megatron.errors import CheckpointError
from megatron.metrics_file import METRICS_FILE
from megatron.parallel.parameter import local_part

# What metrics.jsonl says of a step or a validation, but for times and speeds.
EXACT_FIELDS = (
    "iteration",
    "consumed_samples",
    "consumed_tokens",
    "lm_loss",
    "grad_norm",
    "learning_rate",
    "skipped",
    "validation",
    "ppl",
)


@dataclass(frozen=True)
class Snapshot:
    """The content of one checkpoint."""

    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read all of a checkpoint. Raises CheckpointError if it cannot be."""
        reader = CheckpointReader.open(folder)
        return cls(reader.state, {name: reader.read(name) for name in reader.names()})

    def difference(self, other: Snapshot) -> str | None:
        """Name what differs, None if all bits are the same."""
        if self.state != other.state:
            names = [
                key
                for key in {*self.state, *other.state}
                if self.state.get(key) != other.state.get(key)
            ]
            return f"state differs in {', '.join(sorted(names))}"
        if list(self.tensors) != list(other.tensors):
            return "other tensors"
        for name, tensor in self.tensors.items():
            if not same_bits(tensor, other.tensors[name]):
                return f"{name} differs"
        return None


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor of a world of one process as a plain one."""
    return local_part(tensor.detach())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare two tensors bit by bit, so that nan equals nan and 0.0 is not -0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@dataclass
class Reference:
    """The undisturbed run of a case, which saved after every step."""

    save: Path
    num_steps: int
    _snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def snapshot(self, iteration: int) -> Snapshot:
        if iteration not in self._snapshots:
            folder = checkpoint_folder(self.save, iteration)
            self._snapshots[iteration] = Snapshot.read(folder)
        return self._snapshots[iteration]


def committed(save: Path) -> int:
    """Give the iteration that the tracker names, 0 in a folder without one. Raises CheckpointError."""
    return (latest_iteration(save) if save.is_dir() else None) or 0


def check_checkpoints(save: Path, reference: Reference, known: set[int]) -> list[str]:
    """Read the latest checkpoint and those not known yet, and compare them; say what is wrong. Adds to known."""
    try:
        latest = committed(save)
        folders = {} if latest == 0 else {latest: find_checkpoint(save)}
    except CheckpointError as error:
        return [f"the latest checkpoint is gone: {error}"]
    for iteration in saved_iterations(save) if save.is_dir() else ():
        if iteration not in known:
            folders.setdefault(iteration, checkpoint_folder(save, iteration))
    problems = []
    for iteration, folder in folders.items():
        try:
            difference = Snapshot.read(folder).difference(reference.snapshot(iteration))
        except CheckpointError as error:
            difference = str(error)
        if difference is not None:
            problems.append(f"{folder.name}: {difference}")
        known.add(iteration)
    return problems


def check_complete(save: Path, reference: Reference) -> list[str]:
    """Compare a complete run with the reference: every step's numbers, the last checkpoint, nothing else left."""
    problems = []
    if committed(save) != reference.num_steps:
        problems.append(f"{TRACKER} names {committed(save)} in place of {reference.num_steps}")
    ours, theirs = read_numbers(save), read_numbers(reference.save)
    if ours != theirs:
        pairs = zip([*ours, None], [*theirs, None], strict=False)
        first = next((one, other) for one, other in pairs if one != other)
        problems.append(f"{METRICS_FILE}: {first[0]} in place of {first[1]}")
    known = {path.name for path in save.glob("iter_*") if path.name.isascii()}
    strays = [name for name in sorted(known) if not name.removeprefix("iter_").isdigit()]
    strays += [path.name for path in save.rglob("*.tmp")]
    if strays:
        problems.append(f"left behind: {', '.join(strays)}")
    return problems


def read_numbers(save: Path) -> list[tuple[object, ...]]:
    """Give what metrics.jsonl says of steps and validations, times left out."""
    lines = [json.loads(line) for line in (save / METRICS_FILE).read_text().splitlines()]
    return [tuple(line.get(name) for name in EXACT_FIELDS) for line in lines]
