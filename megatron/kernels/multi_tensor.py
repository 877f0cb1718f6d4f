"""Many tensors in one launch: the table by which kernels find them (csrc/multi_tensor.cuh has its layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements that a block takes at once: enough to find its tensor in the shadow of other blocks' loads, few enough that
# a small model still has a chunk for every processor.
CHUNK_SIZE = 1 << 14


@dataclass(frozen=True)
class Table:
    """Where the tensors of one or several equally long lists lie, on their device."""

    rows: Tensor  # int64 [3 + lists, num_tensors]
    num_chunks: int

    @classmethod
    def upload(cls, lists: Sequence[Sequence[Tensor]], numbers: Sequence[float]) -> Table:
        """Describe lists of contiguous tensors, alike in sizes, and a number for each place in the lists.

        The table goes through pinned memory: the host waits for nothing.
        """
        sizes = [tensor.numel() for tensor in lists[0]]
        first_chunks, num_chunks = [], 0
        for size in sizes:
            first_chunks.append(num_chunks)
            num_chunks += -(-size // CHUNK_SIZE)
        for tensors in lists:
            assert [tensor.numel() for tensor in tensors] == sizes
            assert all(tensor.is_contiguous() for tensor in tensors)
        bits = torch.tensor(list(numbers), dtype=torch.float64).view(torch.int64).tolist()
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in lists]
        host = torch.tensor([first_chunks, sizes, bits, *addresses], dtype=torch.int64)
        device = lists[0][0].device
        return cls(host.pin_memory().to(device, non_blocking=True), num_chunks)

    @property
    def arguments(self) -> tuple[Tensor, int, int, int]:
        """What every kernel takes first."""
        return self.rows, self.rows.size(1), CHUNK_SIZE, self.num_chunks
