"""Bias + GELU in its tanh form, the activation of GPT-2 and StarCoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Compute gelu(x + bias), x [..., f], bias [f]. Overwrites x: a product that nobody else reads."""
    if bias is not None:
        x = x.add_(bias)
    return F.gelu(x, approximate="tanh")
