"""Which rank writes which part of which tensor, each part once.

`torch.distributed.checkpoint` plans it; a plan holds as long as the tensors keep their names and layout. Knows nothing
of files but their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from megatron.checkpoint.layout import rank_file
from megatron.checkpoint.metadata import Chunk, TensorEntry, chunk_key, find_uncovered
from megatron.checkpoint.safetensors_file import TensorSpec
from megatron.parallel.agreement import gather_on_first, scatter_from_first


@dataclass(frozen=True)
class Part:
    """A part of a tensor that this rank writes."""

    spec: TensorSpec
    item: WriteItem


@dataclass(frozen=True)
class PlannedSave:
    """What this rank writes; on rank 0 also where all parts of all tensors will be."""

    rank: int
    world_size: int
    parts: tuple[Part, ...]  # wide dtypes first, none empty
    entries: dict[str, TensorEntry]  # rank 0's only


def plan_save(tensors: Mapping[str, Tensor]) -> PlannedSave:
    """Plan the save of tensors, plain or DTensor. Collective over the world."""
    planner = _planner(tensors)
    plans = gather_on_first(planner.create_local_plan)
    entries: dict[str, TensorEntry] = {}

    def plan_all() -> list[SavePlan]:
        planned, metadata = planner.create_global_plan(plans)
        entries.update(_entries(planned, metadata))
        return planned

    mine = scatter_from_first(plan_all)
    parts = sorted(
        (part for part in map(_part, mine.items) if part.spec.num_bytes),
        key=lambda part: -part.spec.dtype.itemsize,
    )
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return PlannedSave(rank, world_size, tuple(parts), entries)


def part_values(plan: PlannedSave, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Give the values of this rank's parts, where they lie: no copies."""
    planner = _planner(tensors)
    values = [planner.resolve_data(part.item) for part in plan.parts]
    result = [value.detach() for value in values if isinstance(value, Tensor)]
    assert [value.shape for value in result] == [part.spec.shape for part in plan.parts]
    return result


def _planner(tensors: Mapping[str, Tensor]) -> dcp.DefaultSavePlanner:
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), is_coordinator=True)
    return planner


def _part(item: WriteItem) -> Part:
    """Describe a planned part as a tensor of the file."""
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    chunk = item.tensor_data.chunk
    key = chunk_key(item.index.fqn, chunk.offsets)
    return Part(TensorSpec(key, item.tensor_data.properties.dtype, tuple(chunk.sizes)), item)


def _entries(plans: list[SavePlan], metadata: Metadata) -> dict[str, TensorEntry]:
    """Say which file each part of each tensor will be in."""
    files = {
        (item.index.fqn, item.index.offset): rank_file(rank)
        for rank, plan in enumerate(plans)
        for item in plan.items
    }
    entries = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata), f"{name} is no tensor"
        # Empty chunks, of ranks that hold no row of it, are left out.
        chunks = tuple(
            Chunk(files[name, chunk.offsets], tuple(chunk.offsets), tuple(chunk.sizes))
            for chunk in tensor.chunks
            if 0 not in chunk.sizes
        )
        entry = TensorEntry(tuple(tensor.size), tensor.properties.dtype, chunks)
        problem = find_uncovered(entry)
        assert problem is None, f"the layout of {name} cannot be stored: {problem}"
        entries[name] = entry
    return entries
