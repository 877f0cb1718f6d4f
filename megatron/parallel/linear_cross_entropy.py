"""Output layer and cross entropy in one: the logits exist for some tokens at a time.

Forward keeps the log-sum-exps of the tokens, backward computes a chunk's logits again: memory for [chunk, v/t] logits
instead of [s b, v/t], for one more product of the output layer. Like `megatron.parallel.cross_entropy`, whose loss and
gradients it gives: one small all-gather in forward, after all chunks, and nothing communicated in backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.accumulate import add_product_
from megatron.kernels.cross_entropy import REFERENCE, CrossEntropy
from megatron.parallel.cross_entropy import join_shards, local_columns


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        vocab_size: int,
        chunk_size: int,
        group: dist.ProcessGroup,
        kernels: CrossEntropy,
    ) -> Tensor:
        rows = hidden.reshape(-1, hidden.size(-1))  # [r, h]
        columns, num_valid = local_columns(labels, weight.size(0), vocab_size, group)
        log_sum_exp = rows.new_empty(rows.size(0), dtype=torch.float32)
        target = torch.empty_like(log_sum_exp)
        for chunk, logits in _logits_of_chunks(rows, weight, chunk_size):
            log_sum_exp[chunk], target[chunk] = kernels.row_statistics(
                logits, columns[chunk], num_valid
            )
        log_sum_exp, target = join_shards(log_sum_exp, target, group)
        ctx.save_for_backward(rows, weight, columns, log_sum_exp)
        ctx.num_valid, ctx.chunk_size, ctx.kernels = num_valid, chunk_size, kernels
        ctx.shape = hidden.shape
        return (log_sum_exp - target).view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        rows, weight, columns, log_sum_exp = ctx.saved_tensors
        scale = grad.reshape(-1).float()
        grad_rows = torch.empty_like(rows)
        # Chunks add up in fp32: rounded once, as the product over all tokens is.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for chunk, logits in _logits_of_chunks(rows, weight, ctx.chunk_size):
            grad_logits = ctx.kernels.gradient_(
                logits, columns[chunk], ctx.num_valid, log_sum_exp[chunk], scale[chunk]
            )
            torch.mm(grad_logits, weight, out=grad_rows[chunk])
            add_product_(grad_weight, grad_logits.t(), rows[chunk])
        grad_weight = grad_weight.to(weight.dtype)
        return grad_rows.view(ctx.shape), grad_weight, None, None, None, None, None


def _logits_of_chunks(
    rows: Tensor, weight: Tensor, chunk_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Give the rows of each chunk and their logits [chunk, v/t], which the next chunk's overwrite."""
    buffer = rows.new_empty(min(chunk_size, rows.size(0)), weight.size(0))
    for start in range(0, rows.size(0), chunk_size):
        chunk = slice(start, min(start + chunk_size, rows.size(0)))
        logits = buffer[: chunk.stop - start]
        torch.mm(rows[chunk], weight.t(), out=logits)
        yield chunk, logits


def chunked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    chunk_size: int,
    group: dist.ProcessGroup,
    kernels: CrossEntropy = REFERENCE,
) -> Tensor:
    """Give -log softmax(hidden weight^T)[label] in fp32: [s, b, h], weight [v/t, h], labels int64 [s, b] -> [s, b].

    hidden is inside the tensor parallel region: its gradient is this process's part of a sum. chunk_size: tokens whose
    logits exist at once. Ids from vocab_size on are padding and have probability 0. Collective over group in forward.
    """
    assert chunk_size > 0
    return _ChunkedLinearCrossEntropy.apply(
        hidden, weight, labels, vocab_size, chunk_size, group, kernels
    )
