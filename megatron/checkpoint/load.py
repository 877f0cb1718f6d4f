"""Reading a checkpoint into tensors of any layout, whatever layout wrote it.

`torch.distributed.checkpoint` works out which part of which file each rank needs; nothing that is read is ever
unpickled. Knows nothing of models and optimizers: tensors come by name.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from megatron.checkpoint.checksums import read_config
from megatron.checkpoint.metadata import (
    CheckpointMetadata,
    TensorEntry,
    chunk_spec,
    has_row_per_token,
    read_metadata,
    vocabulary_size,
)
from megatron.checkpoint.safetensors_file import SafetensorsReader, TensorSpec
from megatron.checkpoint.verify import verify_files_together
from megatron.errors import CheckpointError, MegatronError, first_of
from megatron.parallel.agreement import first_failure, of_user, on_first_rank, shared


def load_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], *, is_verified: bool = False
) -> None:
    """Fill this rank's tensors, plain or DTensor, from a checkpoint's folder. Collective over the world.

    The first part of a name ("model.", "optimizer.") is a group: of a group that any rank asks for, the ranks
    together must ask for all. Vocabulary tensors may have another number of padding rows than the checkpoint;
    the rows that it lacks keep their values.
    The content of all files is checked first, unless it is_verified just now.
    Every rank raises the same CheckpointError when a file is damaged, or names, shapes or dtypes differ; the
    tensors may then be partly overwritten.
    """
    if not is_verified:
        verify_files_together(folder)
    metadata, vocab_size = on_first_rank(lambda: _describe(folder))
    planner = _Planner(folder, metadata, vocab_size)
    reader = _FolderReader(folder, metadata)
    _together(lambda: dcp.load(dict(tensors), storage_reader=reader, planner=planner))


def _together(load: Callable[[], object]) -> None:
    """Run a load of torch.distributed.checkpoint, which tells every rank the failures of all.

    What a user can cause, and an OSError, is agreed on as in `megatron.parallel.agreement`; what else any rank raised
    comes out as it is.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load()
    except CheckpointException as error:
        by_rank: list[MegatronError | None] = [None] * (max(error.failures) + 1)
        for rank, (failure, _) in sorted(error.failures.items()):
            known = of_user(failure) if isinstance(failure, OSError) else failure
            if not isinstance(known, MegatronError):
                raise failure from error
            by_rank[rank] = known
        first = first_failure(by_rank)
        assert first is not None
        raise shared(first) from None


def _describe(folder: Path) -> tuple[CheckpointMetadata, int | None]:
    """Read what the folder holds, and the true size of its vocabulary where its configuration says it."""
    return read_metadata(folder), vocabulary_size(read_config(folder))


class _Planner(dcp.DefaultLoadPlanner):
    """Compares what is asked for with what is there before anything is read."""

    def __init__(self, folder: Path, metadata: CheckpointMetadata, vocab_size: int | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._folder = folder
        self._stored = metadata.tensors
        self._vocab_size = vocab_size

    def create_local_plan(self) -> LoadPlan:
        """Plan the reads of this rank. The plan carries the names asked for, for the global check."""
        missing = [name for name in self.state_dict if name not in self._stored]
        if missing:
            hint = (
                "it was saved with --no-save-optim; load it with --no-load-optim or --finetune"
                if not any(name.startswith("optimizer.") for name in self._stored)
                and all(name.startswith("optimizer.") for name in missing)
                else "give the model options of the run that wrote it"
            )
            raise CheckpointError(f"{self._folder} lacks {first_of(missing, 2)}; {hint}")
        items: list[ReadItem] = []
        for name, tensor in self.state_dict.items():
            entry = self._stored[name]
            self._check(name, entry, tensor)
            # The shape asked for: rows of padding beyond the stored ones are in no chunk, so nothing reads them.
            stored = Metadata({name: _to_dcp(entry, tuple(tensor.shape))})
            items += create_default_local_load_plan({name: tensor}, stored).items
        return LoadPlan(items, planner_data=tuple(self.state_dict))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Raise CheckpointError for stored tensors of a group asked for that no rank takes. Rank 0 only."""
        asked = {name for plan in global_plan for name in plan.planner_data}
        groups = {_group(name) for name in asked}
        unexpected = [name for name in self._stored if _group(name) in groups and name not in asked]
        if unexpected:
            raise CheckpointError(
                f"{self._folder} has {first_of(unexpected, 2)}, which this run does not have; "
                f"give the model options of the run that wrote it"
            )
        return global_plan

    def _check(self, name: str, entry: TensorEntry, tensor: Tensor) -> None:
        stored, asked = list(entry.shape), list(tensor.shape)
        if stored != asked and not self._differs_in_padding(name, stored, asked):
            raise CheckpointError(
                f"{name} is {stored} in {self._folder} and {asked} in this run; give the model options "
                f"of the run that wrote it (its config.json has them)"
            )
        if entry.dtype != tensor.dtype:
            hint = f"the two are not mixed: load it into {entry.dtype}"
            if name.startswith("optimizer."):
                hint = (
                    "continue with its --exp-avg-dtype and --exp-avg-sq-dtype (its config.json has them), "
                    "or without its moments: --no-load-optim"
                )
            raise CheckpointError(
                f"{name} is {entry.dtype} in {self._folder} and {tensor.dtype} in this run; {hint}"
            )

    def _differs_in_padding(self, name: str, stored: list[int], asked: list[int]) -> bool:
        """Tell whether the two shapes hold the same vocabulary and differ in rows after it only."""
        return (
            has_row_per_token(name)
            and self._vocab_size is not None
            and stored[1:] == asked[1:]
            and min(stored[0], asked[0]) >= self._vocab_size
        )


class _FolderReader(StorageReader):
    """Reads the planned parts of one rank from the safetensors files of a folder."""

    def __init__(self, folder: Path, metadata: CheckpointMetadata) -> None:
        self._folder = folder
        self._metadata = metadata

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One reader reads one checkpoint: there is nothing to reset."""

    def read_metadata(self) -> Metadata:
        """Give what every rank already knows: the caller read it once for all."""
        return Metadata(
            {name: _to_dcp(entry, entry.shape) for name, entry in self._metadata.tensors.items()}
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """The files are opened when they are read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read file by file into the tensors that the planner holds ready."""
        chunks = {
            MetadataIndex(name, chunk.offsets): (chunk.file, chunk_spec(name, entry, chunk))
            for name, entry in self._metadata.tensors.items()
            for chunk in entry.chunks
        }
        items_by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            items_by_file[chunks[item.storage_index][0]].append(item)
        with torch.no_grad():
            for file, items in items_by_file.items():
                reader = SafetensorsReader(self._folder / file)
                for item in items:
                    _read_item(reader, chunks[item.storage_index][1], item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _read_item(
    reader: SafetensorsReader, chunk: TensorSpec, item: ReadItem, planner: LoadPlanner
) -> None:
    target = planner.resolve_tensor(item)
    reader.read_box(chunk, item.storage_offsets, target.detach())
    planner.commit_tensor(item, target)


def _to_dcp(entry: TensorEntry, shape: tuple[int, ...]) -> TensorStorageMetadata:
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
        for chunk in entry.chunks
    ]
    return TensorStorageMetadata(TensorProperties(dtype=entry.dtype), torch.Size(shape), chunks)


def _group(name: str) -> str:
    return name.partition(".")[0]
