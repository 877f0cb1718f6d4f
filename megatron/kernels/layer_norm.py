"""LayerNorm over the last dim; statistics in fp32 whatever the dtype of the input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise x [..., h] with weight and bias [h]."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)
