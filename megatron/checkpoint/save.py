"""Writing a checkpoint: every rank its part, then one step that makes it count.

`torch.distributed.checkpoint` plans which rank writes which part of which tensor, each part once; the files are
safetensors and JSON of our own. Knows nothing of models and optimizers: tensors come by name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from megatron.checkpoint import layout
from megatron.checkpoint.agreement import agreed, on_first_rank
from megatron.checkpoint.files import encode_json, fsync_folder, write_durably, writing
from megatron.checkpoint.metadata import (
    CheckpointMetadata,
    Chunk,
    TensorEntry,
    chunk_key,
    find_uncovered,
    to_json,
)
from megatron.checkpoint.safetensors_file import SafetensorsWriter, TensorSpec


def save_checkpoint(
    root: Path,
    iteration: int,
    tensors: Mapping[str, Tensor],
    *,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, publish it and point the tracker at it. Collective over the world. Gives its folder.

    tensors: this rank's, plain or DTensor; the same name on several ranks is the same tensor, stored once.
    state and config: JSON values, rank 0's count. A checkpoint of the same iteration is replaced.
    A crash at any point leaves the latest checkpoint as it was. On a full disk or the like every rank raises
    CheckpointError and nothing changes.
    """
    values = {layout.STATE_FILE: encode_json(state), layout.CONFIG_FILE: encode_json(config)}
    side = on_first_rank(lambda: layout.prepare_side_folder(root, iteration))
    writer = _FolderWriter(side, iteration, values)
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    is_written = False
    try:
        agreed(lambda: dcp.save(dict(tensors), storage_writer=writer, planner=planner))
        is_written = True
    finally:
        if not is_written and _rank() == 0:
            shutil.rmtree(side, ignore_errors=True)
    return on_first_rank(lambda: layout.publish(root, side, iteration))


class _FolderWriter(StorageWriter):
    """Writes the planned parts of one rank to one file; rank 0 adds the JSON files once all ranks are done."""

    def __init__(self, folder: Path, iteration: int, values: Mapping[str, bytes]) -> None:
        self._folder = folder
        self._iteration = iteration
        self._values = values

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One writer writes one checkpoint: there is nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is there already: rank 0 made it."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's parts to its file and force it to disk."""
        specs = {_spec(item): item for item in plan.items}
        in_order = sorted(
            (spec for spec in specs if spec.num_bytes), key=lambda spec: -spec.dtype.itemsize
        )
        file = layout.rank_file(_rank())
        if in_order:
            path = self._folder / file
            with writing(path), SafetensorsWriter(path, in_order) as writer:
                for spec in in_order:
                    values = planner.resolve_data(specs[spec])
                    assert isinstance(values, Tensor) and values.shape == spec.shape
                    writer.write(spec.key, values)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(specs[spec].index, spec.num_bytes, file) for spec in in_order])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the JSON files. Rank 0 calls it when every rank has written its data."""
        files = {
            (result.index.fqn, result.index.offset): result.storage_data
            for rank_results in results
            for result in rank_results
        }
        for name, data in self._values.items():
            write_durably(self._folder / name, data)
        names = (*self._values, *dict.fromkeys(files.values()))
        description = CheckpointMetadata(
            self._iteration,
            len(results),
            {name: (self._folder / name).stat().st_size for name in names},
            {
                name: _entry(name, tensor, files)
                for name, tensor in sorted(metadata.state_dict_metadata.items())
            },
        )
        write_durably(self._folder / layout.METADATA_FILE, encode_json(to_json(description)))
        fsync_folder(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _spec(item: WriteItem) -> TensorSpec:
    """Describe a planned part as a tensor of the file."""
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    chunk = item.tensor_data.chunk
    key = chunk_key(item.index.fqn, chunk.offsets)
    return TensorSpec(key, item.tensor_data.properties.dtype, tuple(chunk.sizes))


def _entry(
    name: str, tensor: object, files: Mapping[tuple[str, torch.Size | None], str]
) -> TensorEntry:
    """Describe a whole tensor. Empty chunks, of ranks that hold no row of it, are left out."""
    assert isinstance(tensor, TensorStorageMetadata), f"{name} is no tensor"
    chunks = tuple(
        Chunk(files[name, chunk.offsets], tuple(chunk.offsets), tuple(chunk.sizes))
        for chunk in tensor.chunks
        if 0 not in chunk.sizes
    )
    entry = TensorEntry(tuple(tensor.size), tensor.properties.dtype, chunks)
    problem = find_uncovered(entry)
    assert problem is None, f"the layout of {name} cannot be stored: {problem}"
    return entry


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
