"""A model from elsewhere as `megatron.checkpoint.compare` reads one: whole fp32 tensors under our names.

It has weights and no state. Memory: a few blocks of rows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.safetensors_file import row_blocks
from megatron.convert.imported import Import, ImportedTensor


class ImportSource:
    """The tensors of an import, read from their first row to their last."""

    def __init__(self, imported: Import, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {}
        self.config = {"model": {"vocab_size": imported.config.model.vocab_size}}
        self._tensors = {f"model.{tensor.name}": tensor for tensor in imported.tensors}
        self._name = ""  # of the tensor being read
        self._stream: _Stream | None = None

    def names(self) -> list[str]:
        """Name all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Give what every import becomes, without a change of value."""
        return torch.float32

    def read(self, name: str, rows: slice) -> Tensor:
        """Read rows start … stop - 1: [rows, …]. Anything but the next rows of the same tensor starts it over."""
        if self._stream is None or self._name != name or self._stream.next_row != rows.start:
            self._name, self._stream = name, _Stream(self._tensors[name])
            row_bytes = 4 * math.prod(self.shape(name)[1:])
            for first, last in row_blocks(0, rows.start, row_bytes):
                self._stream.take(last - first)
        return self._stream.take(rows.stop - rows.start)


class _Stream:
    """Cuts the blocks of a tensor, of whatever sizes, into the runs of rows that are asked for."""

    def __init__(self, tensor: ImportedTensor) -> None:
        self.next_row = 0
        self._row_shape = tensor.shape[1:]
        self._blocks = tensor.blocks()
        self._rest = torch.empty(0)

    def take(self, num_rows: int) -> Tensor:
        """Give the next num_rows rows."""
        wanted = num_rows * math.prod(self._row_shape)
        pieces, found = [self._rest], len(self._rest)
        while found < wanted:
            pieces.append(next(self._blocks).to(torch.float32).reshape(-1))
            found += len(pieces[-1])
        values = torch.cat(pieces)
        # A copy: a view would keep the whole of values in memory.
        self._rest = values[wanted:].clone()
        self.next_row += num_rows
        return values[:wanted].reshape(num_rows, *self._row_shape)
