"""Cross entropy of logits whose vocabulary is sharded over tensor parallel processes.

One small all-gather a call ([t, 2, s*b] floats) joins the shards' log-sum-exps and target logits; nothing is
communicated in backward. Rows that pad the vocabulary are left out of the softmax: padding never changes a loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels.cross_entropy import REFERENCE, CrossEntropy
from megatron.parallel.collectives import gather_first_dim


def local_columns(
    labels: Tensor, shard_size: int, vocab_size: int, group: dist.ProcessGroup
) -> tuple[Tensor, int]:
    """Give the labels' columns int64 [r] in this process's shard, -1 elsewhere, and its columns that are no padding."""
    first_id = group.rank() * shard_size
    num_valid = min(max(vocab_size - first_id, 0), shard_size)
    columns = labels.reshape(-1) - first_id
    return columns.masked_fill((columns < 0) | (columns >= num_valid), -1), num_valid


def join_shards(
    log_sum_exp: Tensor, target: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Give log-sum-exps and target logits [r] over the whole vocabulary. Collective over group."""
    if group.size() == 1:
        return log_sum_exp, target
    shards = gather_first_dim(torch.stack([log_sum_exp, target])[None], group)  # [t, 2, r]
    return shards[:, 0].logsumexp(dim=0), shards[:, 1].sum(dim=0)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        kernels: CrossEntropy,
    ) -> Tensor:
        rows = logits.reshape(-1, logits.size(-1))  # [r, v/t]
        columns, num_valid = local_columns(labels, rows.size(1), vocab_size, group)
        log_sum_exp, target = kernels.row_statistics(rows, columns, num_valid)
        log_sum_exp, target = join_shards(log_sum_exp, target, group)
        ctx.save_for_backward(rows, columns, log_sum_exp)
        ctx.num_valid = num_valid
        ctx.kernels = kernels
        ctx.shape = logits.shape
        ctx.is_consumed = False
        return (log_sum_exp - target).view(labels.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.is_consumed:
            raise RuntimeError("vocab_parallel_cross_entropy keeps no logits for a second backward")
        ctx.is_consumed = True
        rows, columns, log_sum_exp = ctx.saved_tensors
        scale = grad.reshape(-1).float()
        out = ctx.kernels.gradient_(rows, columns, ctx.num_valid, log_sum_exp, scale)
        return out.view(ctx.shape), None, None, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    kernels: CrossEntropy = REFERENCE,
) -> Tensor:
    """Give -log softmax(logits)[label] in fp32: logits [s, b, v/t], labels int64 [s, b] -> [s, b].

    Ids from vocab_size on are padding and have probability 0. Collective over group in forward. Consumes the logits:
    backward writes their gradient over them, so nobody may read them after it.
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, group, kernels)
