"""Causal attention on a CPU by csrc/cpu_attention.cpp: tiles of scores that never leave the cache, keyed dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron.kernels.attention import AttentionDropout
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import drop_level, head_keys, keep_scale

try:
    from megatron.kernels import _cpu_attention as kernel
except ImportError:
    kernel = None

def _heads(x: Tensor) -> tuple[int, int, int, int]:
    """Describe numbers [s, b, n, d], those of a head side by side: address and strides."""
    assert x.stride(3) == 1 or x.size(3) == 1
    return x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)


def _call(query: Tensor, key: Tensor, log_sums: Tensor, dropout, documents, row_keys, kind: str = "") -> Any:
    sq, b, n, d = query.shape
    call = kernel.Call(query.dtype == torch.bfloat16, kind, b, n, key.size(2), d, sq, key.size(0), log_sums.data_ptr())
    if documents is not None:
        first_keys = documents.host_first_keys
        call.see_from(first_keys.data_ptr(), 0 if first_keys.size(0) == 1 else first_keys.stride(0))
    if dropout is not None:
        call.drop(row_keys.data_ptr(), drop_level(dropout.probability), keep_scale(dropout.probability))
    return call


class _CpuAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, dropout, documents, kind):
        sq, b, n, d = query.shape
        row_keys = None if dropout is None else head_keys(dropout.row_keys, dropout.first_head, n).contiguous()
        out = query.new_empty(sq, b, n, d)
        log_sums = query.new_empty(b, n, sq, dtype=torch.float32)
        _call(query, key, log_sums, dropout, documents, row_keys, kind).forward(
            _heads(query), _heads(key), _heads(value), _heads(out), torch.get_num_threads()
        )
        ctx.save_for_backward(query, key, value, out, log_sums, row_keys)
        ctx.rest = dropout, documents, kind
        return out.view(sq, b, n * d)

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, log_sums, row_keys = ctx.saved_tensors
        dropout, documents, kind = ctx.rest
        grad = grad.view(out.shape)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        _call(query, key, log_sums, dropout, documents, row_keys, kind).backward(
            _heads(query), _heads(key), _heads(value), _heads(out), _heads(grad),
            *map(_heads, grads), torch.get_num_threads(),
        )
        return *grads, None, None, None


def cpu_attention(query, key, value, dropout, documents=None, kind=""):
    return _CpuAttention.apply(query, key, value, dropout, documents, kind)
