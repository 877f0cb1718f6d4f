"""What a token sees of its sample, in the forms that attention kernels want: its document, as far as a window goes.

A document is a run of tokens of one sample. Everything follows from two things, the position in the sample at which
each token's document starts and the length of the window: query i sees key j where start(i) <= j <= i and
i - j < window. Knows nothing of how documents are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """The documents of one micro-batch, and how far back a token sees in its own."""

    host_starts: Tensor  # int64 [b, s], never decreasing in a row; on the CPU, so that reading it waits for nothing
    device: torch.device
    window: int | None = (
        None  # tokens that one sees, itself included; None: all of its document before it
    )

    @classmethod
    def create(
        cls,
        starts: Tensor | None,
        device: torch.device,
        *,
        shape: tuple[int, int],
        window: int | None,
    ) -> Documents | None:
        """Take starts int64 [b, s] on the CPU, None for none but 0, and the shape (b, s).

        Gives None where causal is all there is: each sample is one document and the window is not shorter.
        """
        if window is not None and window >= shape[1]:
            window = None
        if starts is None or not starts.any():
            return (
                None
                if window is None
                else cls(torch.zeros(shape, dtype=torch.int64), device, window)
            )
        assert starts.device.type == "cpu"
        return cls(starts, device, window)

    @cached_property
    def is_same_in_all_samples(self) -> bool:
        """Whether no sample has a boundary: only the window hides anything."""
        return not bool(self.host_starts.any())

    @cached_property
    def host_first_keys(self) -> Tensor:
        """The first key that each query sees, never decreasing in a row: int64 [b, s] on the CPU, [1, s] if all agree."""
        starts = self.host_starts[:1] if self.is_same_in_all_samples else self.host_starts
        if self.window is None:
            return starts
        return torch.maximum(starts, torch.arange(starts.size(1)) - (self.window - 1))

    @cached_property
    def first_keys(self) -> Tensor:
        """`host_first_keys` on the device."""
        return self.host_first_keys.to(self.device, non_blocking=True)

    @cached_property
    def mask(self) -> Tensor:
        """What each query attends to, bool [b or 1, 1, s, s], true = attends; made once for all layers."""
        positions = torch.arange(self.first_keys.size(1), device=self.device)
        visible = self.first_keys.unsqueeze(-1) <= positions
        return visible.logical_and_(positions.unsqueeze(-1) >= positions).unsqueeze(1)

    @cached_property
    def _host_offsets(self) -> Tensor:
        num_tokens, length = self.host_starts.numel(), self.host_starts.size(1)
        begins = (self.host_starts == torch.arange(length)).flatten().nonzero().squeeze(1)
        return torch.cat([begins, begins.new_tensor([num_tokens])])

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Where documents start in the samples laid end to end, and where the last ends: int32 [documents + 1]."""
        return self._host_offsets.int().to(self.device, non_blocking=True)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest document."""
        return int(self._host_offsets.diff().max())
