"""Writing a checkpoint: every rank its part, then one step that makes it count.

The files are safetensors and JSON of our own, hashed as they are written. Knows nothing of models and optimizers:
tensors come by name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megatron.checkpoint import layout
from megatron.checkpoint.checksums import SUMS_FILE, encode_sums, sha256_of
from megatron.checkpoint.content_hash import ContentHash
from megatron.checkpoint.files import encode_json, write_durably, writing
from megatron.checkpoint.metadata import CheckpointMetadata, TensorEntry, encode_metadata
from megatron.checkpoint.safetensors_file import SafetensorsWriter
from megatron.checkpoint.save_plan import PlannedSave, part_values, plan_save
from megatron.parallel.agreement import gather_on_first, on_first_rank
from megatron.whole_file import force_to_disk


@dataclass(frozen=True)
class WrittenFile:
    """A file of a checkpoint as it should be read back."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class SideFolder:
    """A checkpoint that is being written and does not count yet."""

    root: Path
    iteration: int
    path: Path

    def discard(self) -> None:
        """Remove it as far as the disk lets us: the next save clears the rest. Rank 0 does it, others nothing."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            shutil.rmtree(self.path, ignore_errors=True)


def save_checkpoint(
    root: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    *,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    plan: PlannedSave | None = None,
) -> Path:
    """Write a checkpoint, publish it and point the tracker at it. Collective over the world. Gives its folder.

    tensors: this rank's, plain or DTensor; the same name on several ranks is the same tensor, stored once.
    state and config: JSON values, rank 0's count. A checkpoint of the same iteration is replaced.
    plan: of an earlier save of the same tensors.
    A crash at any point leaves the latest checkpoint as it was. On a full disk or the like every rank raises
    CheckpointError and nothing changes.
    """
    planned = plan or plan_save(tensors)
    values = encode_values(state, config)
    side = open_side_folder(root, iteration)
    is_published = False
    try:
        parts = [(part,) for part in part_values(planned, tensors)]
        written = gather_on_first(lambda: write_part(side, planned, parts))
        folder = on_first_rank(lambda: publish(side, planned, written, values))
        is_published = True
    finally:
        if not is_published:
            side.discard()
    return folder


def open_side_folder(root: Path, iteration: int) -> SideFolder:
    """Make an empty folder to write a checkpoint into. Collective over the world."""
    return SideFolder(
        root, iteration, on_first_rank(lambda: layout.prepare_side_folder(root, iteration))
    )


def write_part(
    side: SideFolder, plan: PlannedSave, values: Sequence[Iterable[Tensor]]
) -> list[WrittenFile]:
    """Write this rank's parts to its file and force it to disk; nothing if it has none. Local.

    values: of each part, whole or in pieces in row-major order. Raises CheckpointError.
    """
    if not plan.parts:
        return []
    path = side.path / layout.rank_file(plan.rank)
    specs = [part.spec for part in plan.parts]
    with (
        ContentHash() as content,
        writing(path),
        SafetensorsWriter(path, specs, content=content) as writer,
    ):
        for spec, pieces in zip(specs, values, strict=True):
            for piece in pieces:
                writer.write(spec.key, piece)
    return [WrittenFile(path.name, writer.num_bytes, content.hexdigest())]


def publish(
    side: SideFolder,
    plan: PlannedSave,
    written: Sequence[Sequence[WrittenFile]],
    values: Mapping[str, bytes],
) -> Path:
    """Add to the files of all ranks what describes them, and make the checkpoint count. Rank 0 alone calls it."""
    files = [file for of_rank in written for file in of_rank]
    write_description(side, plan.world_size, files, values, plan.entries)
    return layout.publish(side.root, side.path, side.iteration)


def encode_values(state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, bytes]:
    """Give the content of the files that hold a caller's JSON values."""
    return {layout.STATE_FILE: encode_json(state), layout.CONFIG_FILE: encode_json(config)}


def write_description(
    side: SideFolder,
    world_size: int,
    files: Iterable[WrittenFile],
    values: Mapping[str, bytes],
    entries: Mapping[str, TensorEntry],
) -> None:
    """Write all but the tensors of a checkpoint, the hashes last, and force it to disk."""
    lengths = {file.name: file.num_bytes for file in files}
    lengths |= {name: len(data) for name, data in values.items()}
    metadata = CheckpointMetadata(side.iteration, world_size, lengths, dict(entries))
    described = {**values, layout.METADATA_FILE: encode_metadata(metadata)}
    sums = {file.name: file.sha256 for file in files}
    sums |= {name: sha256_of(data) for name, data in described.items()}
    for name, data in {**described, SUMS_FILE: encode_sums(sums)}.items():
        write_durably(side.path / name, data)
    with writing(side.path):
        force_to_disk(side.path)
