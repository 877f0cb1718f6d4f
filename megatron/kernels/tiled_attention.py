"""Causal attention on a CPU by csrc/cpu_attention.cpp, in tiles of scores that never leave its caches.

As `blocked_attention`: query heads that share a key head are rows of one product, keys that no query of a tile sees
are not touched, dropout is keyed. But softmax, dropout and rounding happen while a tile's scores are at hand, sums are
in fp32, and backward keeps the outputs and a number for each query (FlashAttention, arXiv 2205.14135, 2307.08691).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.attention import AttentionDropout, explicit_attention
from megatron.kernels.documents import Documents
from megatron.kernels.dropout import drop_level, keep_scale

try:
    from megatron.kernels import _cpu_attention as kernel
except ImportError:  # `cpu_library.obstacle` says why
    kernel = None  # type: ignore[assignment]

HeadsArgument = tuple[int, int, int, int]


def _heads(x: Tensor) -> HeadsArgument:
    """Describe [s, b, n, d], the numbers of a head side by side: an address, and strides of s, b and n."""
    assert x.stride(3) == 1 or x.size(3) == 1
    return x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Addresses say neither sizes nor dtypes."""
    sk, _, g, _ = key.shape
    assert key.shape == value.shape == (sk, query.size(1), g, query.size(3))
    assert query.dtype == key.dtype == value.dtype
    assert key.is_cpu and value.is_cpu


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: AttentionDropout | None,
        documents: Documents | None,
        kind: str,
    ) -> Tensor:
        sq, b, n, d = query.shape
        query, key, value = map(_side_by_side, (query, key, value))
        ctx.rest = dropout, documents, kind
        out = query.new_empty(sq, b, n * d)
        log_sums = query.new_empty(b, n, sq, dtype=torch.float32)
        call = _call(ctx, query, key, log_sums)
        call.forward(
            _heads(query),
            _heads(key),
            _heads(value),
            _heads(out.view(sq, b, n, d)),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(query, key, value, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, out, log_sums = ctx.saved_tensors
        out, out_grad = out.view(query.shape), _side_by_side(out_grad.view(query.shape))
        # not `empty_like`: of a head that is repeated without a copy it may put a head's numbers apart
        query_grad, key_grad, value_grad = (x.new_empty(x.shape) for x in (query, key, value))
        call = _call(ctx, query, key, log_sums)
        call.backward(
            _heads(query),
            _heads(key),
            _heads(value),
            _heads(out),
            _heads(out_grad),
            _heads(query_grad),
            _heads(key_grad),
            _heads(value_grad),
            torch.get_num_threads(),
        )
        return query_grad, key_grad, value_grad, None, None, None


def _call(ctx: Any, query: Tensor, key: Tensor, log_sums: Tensor) -> kernel.Call:
    """Describe a call to the kernel; what it points to lives as long as ctx."""
    dropout, documents, kind = ctx.rest
    (sq, b, n, d), (sk, _, g, _) = query.shape, key.shape
    is_bf16 = query.dtype == torch.bfloat16
    call = kernel.Call(is_bf16, kind, b, n, g, d, sq, sk, log_sums.data_ptr())
    if documents is not None:
        first_keys = documents.host_first_keys
        assert first_keys.shape in ((b, sq), (1, sq)) and first_keys.dtype == torch.int64
        assert first_keys.stride(1) == 1 or sq == 1
        call.see_from(first_keys.data_ptr(), first_keys.stride(0) if first_keys.size(0) > 1 else 0)
    if dropout is not None:
        assert dropout.row_keys.shape == (sq, b) and dropout.row_keys.is_contiguous()
        call.drop(
            dropout.row_keys.data_ptr(),
            dropout.first_head,
            drop_level(dropout.probability),
            keep_scale(dropout.probability),
        )
    return call


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: AttentionDropout | None,
    documents: Documents | None = None,
    *,
    kind: str = "",
) -> Tensor:
    """Attend tile by tile: query [sq, b, n, d], key and value [sk, b, g, d], g dividing n -> [sq, b, n*d].

    fp32 and bf16; fp16 is computed in fp32, others, and what is on the meta device, by the reference. kind: of the
    processor's kernels, the fastest if empty.
    """
    if query.dtype == torch.float16:
        wide = query.float(), key.float(), value.float()
        return tiled_attention(*wide, dropout, documents, kind=kind).to(query.dtype)
    if not query.is_cpu or query.dtype not in (torch.float32, torch.bfloat16):
        return explicit_attention(query, key, value, dropout, documents)
    _check(query, key, value)
    return _TiledAttention.apply(query, key, value, dropout, documents, kind)
