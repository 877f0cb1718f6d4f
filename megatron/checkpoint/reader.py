"""A checkpoint as one process sees it: whole tensors, or runs of their rows, whatever layout wrote them.

For tools. Needs no process group and no memory beyond what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.checksums import read_config, read_state
from megatron.checkpoint.metadata import CheckpointMetadata, TensorEntry, chunk_spec, read_metadata
from megatron.checkpoint.safetensors_file import SafetensorsReader
from megatron.checkpoint.verify import verify_files
from megatron.errors import CheckpointError


@dataclass(frozen=True)
class CheckpointReader:
    """One opened checkpoint. Raises CheckpointError for a tensor that is not there and for damaged files."""

    folder: Path
    state: dict[str, Any]
    config: dict[str, Any]
    _metadata: CheckpointMetadata
    _files: dict[str, SafetensorsReader]

    @classmethod
    def open(cls, folder: Path) -> CheckpointReader:
        """Open the folder of one checkpoint (`find_checkpoint` gives it) and check its description, not its tensors."""
        metadata = read_metadata(folder)
        return cls(folder, read_state(folder), read_config(folder), metadata, {})

    def verify(self, on_bytes: Callable[[int], object] | None = None) -> None:
        """Read all files once. Raises CheckpointError unless they are what was written."""
        verify_files(self.folder, on_bytes)

    @property
    def num_bytes(self) -> int:
        """What `verify` reads, less a little for the description."""
        return sum(self._metadata.files.values())

    @property
    def iteration(self) -> int:
        return self._metadata.iteration

    def names(self) -> list[str]:
        """Name all tensors."""
        return list(self._metadata.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a whole tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Give the dtype of a tensor as stored."""
        return self._entry(name).dtype

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Read a tensor, or the rows (indices of dim 0, step 1) of it: [rows, …]."""
        entry = self._entry(name)
        if rows is None or not entry.shape:
            start, shape = 0, entry.shape
        else:
            start, stop, step = rows.indices(entry.shape[0])
            assert step == 1, "rows are read in order"
            shape = (max(0, stop - start), *entry.shape[1:])
        out = torch.empty(shape, dtype=entry.dtype)
        for chunk in entry.chunks:
            spec = chunk_spec(name, entry, chunk)
            if not shape:
                self._file(chunk.file).read_box(spec, (), out)
                continue
            first = max(start, chunk.offsets[0])
            last = min(start + shape[0], chunk.offsets[0] + chunk.sizes[0])
            if first >= last:
                continue
            target = out[first - start : last - start]
            for dim in range(1, len(shape)):
                target = target.narrow(dim, chunk.offsets[dim], chunk.sizes[dim])
            offsets = (first - chunk.offsets[0], *(0 for _ in shape[1:]))
            self._file(chunk.file).read_box(spec, offsets, target)
        return out

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._metadata.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {name}")
        return self._metadata.tensors[name]

    def _file(self, name: str) -> SafetensorsReader:
        if name not in self._files:
            self._files[name] = SafetensorsReader(self.folder / name)
        return self._files[name]
