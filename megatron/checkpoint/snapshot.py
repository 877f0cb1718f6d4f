"""A copy of tensors in the host's memory, as they were at one moment. Knows nothing of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# torch rounds pinned memory up to a power of two: in blocks of one, only the last is rounded.
BLOCK_BYTES = 1 << 30


@dataclass(frozen=True)
class Snapshot:
    """The values of tensors, each in flat pieces in row-major order, complete after `wait`."""

    pieces: list[list[Tensor]]
    _copied: torch.cuda.Event | None

    def wait(self) -> None:
        """Wait until a device has copied everything. Any thread may call it."""
        if self._copied is not None:
            self._copied.synchronize()


class HostMemory:
    """Host memory that snapshots are copied to, kept from one to the next: as much as the tensors take."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []

    def copy(self, values: Sequence[Tensor]) -> Snapshot:
        """Copy values, wide dtypes first, over the last snapshot.

        From a GPU the copies are queued on its current stream: the host goes on at once, and whatever is queued
        behind them there, such as the next update of the weights, comes too late to be in them.
        """
        device = next((value.device for value in values if value.device.type == "cuda"), None)
        self._allocate(sum(value.nbytes for value in values), is_pinned=device is not None)
        place = 0
        pieces = []
        for value in values:
            pieces.append(self._copy(value.detach().reshape(-1), place))
            place += value.nbytes
        copied = None
        if device is not None:
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(device))
        return Snapshot(pieces, copied)

    def _allocate(self, num_bytes: int, *, is_pinned: bool) -> None:
        """Make room, unless the blocks of the last time are just right."""
        sizes = [min(BLOCK_BYTES, num_bytes - start) for start in range(0, num_bytes, BLOCK_BYTES)]
        if [len(block) for block in self._blocks] != sizes:
            self._blocks = []  # before there are new ones
            self._blocks = [
                torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned) for size in sizes
            ]

    def _copy(self, flat: Tensor, place: int) -> list[Tensor]:
        """Copy a flat tensor to a place, in as many pieces as it crosses blocks."""
        source = flat.view(torch.uint8)
        pieces = []
        start = 0
        while start < len(source):
            block, offset = divmod(place + start, BLOCK_BYTES)
            count = min(len(source) - start, BLOCK_BYTES - offset)
            target = self._blocks[block][offset : offset + count]
            target.copy_(source[start : start + count], non_blocking=True)
            pieces.append(target.view(flat.dtype))
            start += count
        return pieces
