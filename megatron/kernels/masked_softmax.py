"""Softmax of attention scores over the keys that a query sees, computed in fp32 whatever the dtype of the scores.

Query q of sq sees the keys first_keys[q] <= k <= sk - sq + q of sk: those of its document, as far as its window goes,
up to itself. `fused_scaled_masked_softmax` is one kernel forward and one backward (csrc/masked_softmax.cu) that read
no hidden key; rows may have any length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

from megatron.kernels.cuda_library import dtype_code, launch
from megatron.kernels.fused import dense, widen


def scaled_masked_softmax(scores: Tensor, scale: float, first_keys: Tensor | None) -> Tensor:
    """Give softmax(scale * scores) in the dtype of scores, exactly 0 where hidden.

    scores [b, n, sq, sk] with sq <= sk; scale > 0; first_keys int64 [b or 1, sq], None for all from key 0 on.
    """
    hidden = _hidden(scores, first_keys)
    scaled = widen(scores).mul(scale).masked_fill(hidden, float("-inf"))
    probabilities = scaled.softmax(dim=-1)
    return probabilities.masked_fill(hidden, 0.0).to(scores.dtype)  # a row without keys is 0, too


def fused_scaled_masked_softmax(scores: Tensor, scale: float, first_keys: Tensor | None) -> Tensor:
    """Compute what `scaled_masked_softmax` does. Backward keeps the result."""
    assert scale > 0 and scores.size(-2) <= scores.size(-1)
    return _softmax(scores, scale, first_keys)


def _hidden(scores: Tensor, first_keys: Tensor | None) -> Tensor:
    """Say which keys are hidden, bool [b or 1, 1, sq, sk]."""
    sq, sk = scores.shape[-2:]
    keys = torch.arange(sk, device=scores.device)
    hidden = keys > keys[sk - sq :].unsqueeze(-1)  # [sq, sk]
    if first_keys is not None:
        hidden = hidden | (keys < first_keys.unsqueeze(-1))  # [b or 1, sq, sk]
    return hidden.view(-1, 1, sq, sk)


@library.custom_op("megatron::scaled_masked_softmax", mutates_args=(), device_types="cpu")
def _softmax(scores: Tensor, scale: float, first_keys: Tensor | None) -> Tensor:
    return scaled_masked_softmax(scores, scale, first_keys)


@_softmax.register_kernel("cuda")
def _softmax_cuda(scores: Tensor, scale: float, first_keys: Tensor | None) -> Tensor:
    probabilities = _softmax_like(scores, scale, first_keys)
    launch(
        "scaled_masked_softmax",
        scores.contiguous(),
        scale,
        dense(first_keys),
        1 if first_keys is None else first_keys.size(0),
        probabilities,
        *scores.shape,
        dtype_code(scores.dtype),
    )
    return probabilities


@_softmax.register_fake
def _softmax_like(scores: Tensor, scale: float, first_keys: Tensor | None) -> Tensor:
    return scores.new_empty(scores.shape)


@library.custom_op("megatron::scaled_masked_softmax_backward", mutates_args=(), device_types="cpu")
def _softmax_backward(
    d_probabilities: Tensor, probabilities: Tensor, scale: float, first_keys: Tensor | None
) -> Tensor:
    """Give d_scores = scale * p * (d_p - sum(p * d_p))."""
    p, d_p = widen(probabilities), widen(d_probabilities)
    d_p = d_p.masked_fill(_hidden(p, first_keys), 0.0)
    return (d_p - (p * d_p).sum(dim=-1, keepdim=True)).mul_(p).mul_(scale).to(probabilities.dtype)


@_softmax_backward.register_kernel("cuda")
def _softmax_backward_cuda(
    d_probabilities: Tensor, probabilities: Tensor, scale: float, first_keys: Tensor | None
) -> Tensor:
    d_scores = probabilities.new_empty(probabilities.shape)
    launch(
        "scaled_masked_softmax_backward",
        d_probabilities.contiguous(),
        probabilities.contiguous(),
        scale,
        dense(first_keys),
        1 if first_keys is None else first_keys.size(0),
        d_scores,
        *probabilities.shape,
        dtype_code(probabilities.dtype),
    )
    return d_scores


@_softmax_backward.register_fake
def _softmax_backward_like(
    d_probabilities: Tensor, probabilities: Tensor, scale: float, first_keys: Tensor | None
) -> Tensor:
    return probabilities.new_empty(probabilities.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.scale, first_keys = inputs
    ctx.save_for_backward(output, first_keys)


def _differentiate(ctx: Any, d_probabilities: Tensor) -> tuple[Tensor, None, None]:
    probabilities, first_keys = ctx.saved_tensors
    return _softmax_backward(d_probabilities, probabilities, ctx.scale, first_keys), None, None


_softmax.register_autograd(_differentiate, setup_context=_keep)
