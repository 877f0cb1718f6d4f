"""Rotary position embedding (arXiv 2104.09864): pairs of channels of queries and keys are turned by their position.

Channel i of a head's first half and channel i of its second half are a pair, as in Hugging Face's models; pair i
turns by position x base^(-2i/d). Angles, sines and products are in fp32 whatever the dtype. Knows nothing of where
positions come from: any whole numbers, of a whole sequence or of a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """How far the tokens of a micro-batch are turned: made once, for all layers."""

    cos: Tensor  # fp32 [s, b or 1, 1, d/2]
    sin: Tensor  # the same

    @classmethod
    def create(cls, positions: Tensor, head_dim: int, base: float) -> Rotation:
        """Take positions int64 [b, s], or [1, s] if all samples have the same, on the device of the queries."""
        channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / base ** (channels / head_dim)
        angles = positions.t()[:, :, None, None].float() * frequencies  # [s, b, 1, d/2]
        return cls(angles.cos(), angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        """Turn queries or keys, [s, b, heads, d], the same shape and dtype back."""
        first, second = x.float().chunk(2, dim=-1)
        turned = torch.cat(
            [first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1
        )
        return turned.to(x.dtype)
