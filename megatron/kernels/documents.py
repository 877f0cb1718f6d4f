"""Documents packed into samples, in the forms that attention kernels want them: none attends over a boundary.

A document is a run of tokens of one sample. Everything follows from one number a token, the position in the sample
at which its document starts: query i sees key j where start(i) <= j <= i. Knows nothing of how documents are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """The documents of one micro-batch."""

    host_starts: Tensor  # int64 [b, s], never decreasing in a row; on the CPU, so that reading it waits for nothing
    device: torch.device

    @classmethod
    def create(cls, starts: Tensor, device: torch.device) -> Documents | None:
        """Take starts int64 [b, s] on the CPU; None where each sample is one document, so causal is all there is."""
        assert starts.device.type == "cpu"
        return cls(starts, device) if starts.any() else None

    @cached_property
    def starts(self) -> Tensor:
        """The starts on the device, int64 [b, s]."""
        return self.host_starts.to(self.device, non_blocking=True)

    @cached_property
    def mask(self) -> Tensor:
        """What each query attends to, bool [b, 1, s, s], true = attends; made once for all layers."""
        positions = torch.arange(self.starts.size(1), device=self.device)
        visible = self.starts.unsqueeze(-1) <= positions
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
