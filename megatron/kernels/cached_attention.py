"""Attention of one new token of each sequence to the keys and values of those before it, which lie in a cache.

The query heads of a group are rows of one product with their key head, so that no key or value is read twice or copied,
whatever the number of heads. Nothing here is differentiable.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def without_plans(device: torch.device) -> AbstractContextManager[object]:
    """Keep torch from cuDNN inside, which it prefers on Hopper and Blackwell and which plans anew for each number of keys.

    A text has another number at each of its tokens. To be entered once for all layers: it takes microseconds.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


def cached_attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend: query [b, n, d], keys and values [b, g, l, d] with g dividing n -> [b, n*d].

    bias: [b, 1, l] in the dtype of the query, 0 where a sequence has a key that it sees and -inf elsewhere; None: it
    sees all. What is hidden has to be finite. Softmax in fp32 or, on a CPU, in no less than the dtype of the query.
    """
    b, n, d = query.shape
    g = keys.size(1)
    if query.dtype != torch.float32 or query.device.type != "cpu":
        mask = None if bias is None else bias.unsqueeze(1)  # [b, 1, 1, l]
        rows = query.reshape(b, g, n // g, d)
        return F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask).reshape(b, n * d)
    # in fp32 a CPU is faster by two products than by torch's kernel
    rows = query.reshape(b * g, n // g, d)
    scores = torch.baddbmm(
        rows.new_zeros(()) if bias is None else _for_groups(bias, g, n // g),
        rows,
        keys.flatten(0, 1).transpose(1, 2),
        beta=0.0 if bias is None else 1.0,
        alpha=d**-0.5,
    )
    return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)).view(b, n * d)


def _for_groups(bias: Tensor, num_groups: int, group_size: int) -> Tensor:
    """Give every group its sequence's bias: [b, 1, l] -> [b*g, n/g, l], a view for one group."""
    b, _, num_keys = bias.shape
    wide = bias.unsqueeze(1).expand(b, num_groups, group_size, num_keys)
    return wide.flatten(0, 1)
