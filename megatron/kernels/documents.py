"""What a token sees of its sample, in the forms that attention kernels want: its document, as far as a window goes.

A document is a run of tokens of one sample. Everything follows from two things, the position in the sample at which
each token's document starts and the length of the window: query i sees key j where start(i) <= j <= i and
i - j < window. The queries are the last tokens of the sample so far, as in `attention`. Knows nothing of how documents
are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megatron.transfer import to_device


@dataclass(frozen=True)
class Packed:
    """Runs of tokens of samples that are laid end to end."""

    offsets: Tensor  # int32 [runs + 1]: where each starts, and where the last ends
    longest: int


@dataclass(frozen=True)
class Documents:
    """The documents of one micro-batch, and how far back a token sees in its own."""

    # int64 [b, sq], of the queries, never decreasing in a row; on the CPU, so that reading it waits for nothing
    host_starts: Tensor
    device: torch.device
    window: int | None = (
        None  # tokens that one sees, itself included; None: all of its document before it
    )
    first_position: int = 0  # of the queries in their samples

    @classmethod
    def create(
        cls,
        starts: Tensor | None,
        device: torch.device,
        *,
        shape: tuple[int, int],
        window: int | None,
        first_position: int = 0,
    ) -> Documents | None:
        """Take starts int64 [b, sq] on the CPU, None for none but 0, and the shape (b, sq).

        Gives None where causal is all there is: each sample is one document and the window is not shorter.
        """
        if window is not None and window >= first_position + shape[1]:
            window = None
        if starts is None or not starts.any():
            return (
                None
                if window is None
                else cls(torch.zeros(shape, dtype=torch.int64), device, window, first_position)
            )
        assert starts.device.type == "cpu"
        return cls(starts, device, window, first_position)

    @property
    def _positions(self) -> Tensor:
        """The positions of the queries: int64 [sq] on the CPU."""
        first = self.first_position
        return torch.arange(first, first + self.host_starts.size(1))

    @cached_property
    def is_same_in_all_samples(self) -> bool:
        """Whether no query's document has a start: only the window hides anything."""
        return not bool(self.host_starts.any())

    @cached_property
    def host_first_keys(self) -> Tensor:
        """The first key that each query sees, never decreasing in a row: int64 [b, sq] on the CPU, [1, sq] if all agree."""
        starts = self.host_starts[:1] if self.is_same_in_all_samples else self.host_starts
        if self.window is None:
            return starts
        return torch.maximum(starts, self._positions - (self.window - 1))

    @cached_property
    def first_keys(self) -> Tensor:
        """`host_first_keys` on the device."""
        return to_device(self.host_first_keys, self.device)

    @cached_property
    def mask(self) -> Tensor:
        """What each query attends to, bool [b or 1, 1, sq, sk], true = attends; made once for all layers."""
        positions = torch.arange(
            self.first_position + self.first_keys.size(1), device=self.device
        )  # of the keys
        visible = self.first_keys.unsqueeze(-1) <= positions
        queries = positions[self.first_position :].unsqueeze(-1)
        return visible.logical_and_(queries >= positions).unsqueeze(1)

    @cached_property
    def packed_queries(self) -> Packed:
        """The queries of each document, in the order of `packed_keys`."""
        return self._packed[0]

    @cached_property
    def packed_keys(self) -> Packed:
        """The keys of each document that has queries.

        Before them stand, in each sample, the keys that none of its queries sees: keys without queries, or nothing.
        """
        return self._packed[1]

    @cached_property
    def _packed(self) -> tuple[Packed, Packed]:
        num_samples, num_queries = self.host_starts.shape
        num_keys = self.first_position + num_queries
        begins = self.host_starts == self._positions
        begins[:, 0] = True
        samples, columns = begins.nonzero(as_tuple=True)
        queries = samples * num_queries + columns
        keys = samples * num_keys + self.host_starts[samples, columns]
        if self.first_position > 0:
            every_sample = torch.arange(num_samples)
            queries = torch.cat([queries, every_sample * num_queries]).sort().values
            keys = torch.cat([keys, every_sample * num_keys]).sort().values
        return (
            self._pack(queries, num_samples * num_queries),
            self._pack(keys, num_samples * num_keys),
        )

    def _pack(self, begins: Tensor, end: int) -> Packed:
        offsets = torch.cat([begins, begins.new_tensor([end])])
        return Packed(to_device(offsets.int(), self.device), int(offsets.diff().max()))
