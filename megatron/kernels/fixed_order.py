"""Attention whose gradients have the same bits at every run.

In the backward pass of torch's fused attention and of cuDNN's the blocks of keys add to a query's gradient as they
come. Torch's FlashAttention and its memory-efficient attention keep an order, at some cost, where torch's switch for
deterministic algorithms is on. Here it is on for that part of the backward pass alone: other operations refuse to run
under it. Knows nothing of how attention is computed.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron.kernels.attention import (
    AttentionDropout,
    AttentionFunction,
    expand_heads,
    sdpa_attention,
)
from megatron.kernels.documents import Documents

_CAN_KEEP_ORDER = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


class _Switch:
    """Torch's switch around one node of a backward pass."""

    def __init__(self) -> None:
        self._before: bool | None = None

    def turn_on(self, _: Tensor) -> None:
        self._before = torch.are_deterministic_algorithms_enabled()
        # not by use_deterministic_algorithms, which sets the compiler's too
        torch._C._set_deterministic_algorithms(True, warn_only=False)

    def put_back(self, _: Tensor) -> None:
        """Leave it as it was, once."""
        if self._before is not None:
            torch._C._set_deterministic_algorithms(self._before, warn_only=False)
        self._before = None


def in_fixed_order(attend: AttentionFunction) -> AttentionFunction:
    """Give the same attention, by kernels that add gradients in a fixed order; for torch's fused ones, on a GPU."""

    @functools.wraps(attend)
    def attend_in_order(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: AttentionDropout | None,
        documents: Documents | None = None,
    ) -> Tensor:
        with sdpa_kernel(_CAN_KEEP_ORDER):
            context = attend(query, key, value, dropout, documents)
        if context.requires_grad:
            # Hooks run right before the node that made a tensor: what lies between them is attention's.
            switch = _Switch()
            context.register_hook(switch.turn_on)
            for x in (query, key, value):
                if x.requires_grad:
                    x.register_hook(switch.put_back)
        return context

    return attend_in_order


@in_fixed_order
def sdpa_in_fixed_order(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Attend as `sdpa_attention`; of the kernels that keep an order the one for fp32 shares no heads."""
    key, value = (expand_heads(x, query.size(2)) for x in (key, value))
    return sdpa_attention(query, key, value, dropout, documents)


def keeping_order(attend: AttentionFunction) -> AttentionFunction:
    """Give for one of torch's fused attentions the one that keeps an order."""
    return sdpa_in_fixed_order if attend is sdpa_attention else in_fixed_order(attend)
