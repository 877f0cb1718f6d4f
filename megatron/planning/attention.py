"""What a GPU's fused attention keeps and works on, without its arithmetic: for counting on the meta device.

FlashAttention (arXiv 2205.14135; the packed kernels for documents, cuDNN's) keeps its inputs, its output and one
log-sum-exp a row; its backward pass needs a gradient of each, with shared key/value heads first one a query head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.attention import AttentionDropout
from megatron.kernels.documents import Documents

# FlashAttention recomputes the scores in its backward pass: five products where forward has two.
BACKWARD_ATTENTION = 2.5


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        sq, b, n, d = query.shape
        context = query.new_empty(sq, b, n * d)
        row_sums = query.new_empty(b, n, sq, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, context, row_sums)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        n = query.size(2)
        sums = torch.empty_like(query, dtype=torch.float32)  # of the queries' gradient, over blocks
        shape = (*key.shape[:2], n, key.size(3))
        key_grads, value_grads = (
            key.new_empty(shape),
            value.new_empty(shape),
        )  # a head of each query
        result = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del sums, key_grads, value_grads
        return result


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
) -> Tensor:
    """Allocate as a fused kernel does: query [sq, b, n, d], key and value [sk, b, g, d] -> [sq, b, n*d]."""
    return _FusedAttention.apply(query, key, value)
