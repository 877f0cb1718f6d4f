"""The local part of a cross entropy whose vocabulary is sharded: row statistics, and the gradient in place.

Softmax in fp32, but no fp32 copy of the logits exists at any time, and the gradient takes the place of the logits:
in blocks of rows (REFERENCE), or in one pass over them in either direction (FUSED: csrc/cross_entropy.cu). Knows
nothing of process groups: `megatron.parallel.cross_entropy` joins the shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, library

from megatron.kernels.cuda_library import dtype_code, launch

# Elements of a block. On a CPU its fp32 scratch stays in the caches (smaller ones cost more in starting threads
# than they save); a GPU wants few launches.
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 1 << 26
_LOG2_E = math.log2(math.e)


def _row_blocks(logits: Tensor) -> Iterator[slice]:
    num_elements = _CPU_BLOCK if logits.device.type == "cpu" else _GPU_BLOCK
    rows = max(1, num_elements // logits.size(1))
    for start in range(0, logits.size(0), rows):
        yield slice(start, min(start + rows, logits.size(0)))


def _scratch(logits: Tensor, num_columns: int) -> Tensor:
    """Make what holds a block in fp32: one for all of them, as fresh memory costs a CPU more than arithmetic."""
    rows = next(_row_blocks(logits), slice(0, 0))
    return logits.new_empty((rows.stop, num_columns), dtype=torch.float32)


def _exp_(x: Tensor) -> Tensor:
    """Compute exp in place, as a power of 2: on a CPU torch's exp2 takes a quarter of the time of its exp."""
    return x.mul_(_LOG2_E).exp2_()


def row_statistics(logits: Tensor, columns: Tensor, num_valid: int) -> tuple[Tensor, Tensor]:
    """Give log-sum-exp over the first num_valid columns, and the logit at columns; both fp32 [r].

    logits [r, v]; columns int64 [r], the label's column or -1 where the label is not in this shard: its logit
    is then 0. The log-sum-exp of no column is -inf.
    """
    log_sum_exp = logits.new_full((logits.size(0),), float("-inf"), dtype=torch.float32)
    if num_valid > 0:
        scratch = _scratch(logits, num_valid)
        for rows in _row_blocks(logits):
            block = logits[rows, :num_valid]
            wide = scratch[: block.size(0)].copy_(block)
            largest = wide.amax(dim=1, keepdim=True)
            total = _exp_(wide.sub_(largest)).sum(dim=1)
            log_sum_exp[rows] = total.log_().add_(largest.squeeze(1))
    picked = logits.gather(1, columns.clamp(min=0).unsqueeze(1)).squeeze(1).float()
    return log_sum_exp, picked.masked_fill_(columns < 0, 0.0)


def gradient_(
    logits: Tensor, columns: Tensor, num_valid: int, log_sum_exp: Tensor, scale: Tensor
) -> Tensor:
    """Overwrite logits [r, v] with (softmax - one_hot(columns)) * scale; returns it.

    log_sum_exp and scale fp32 [r]. Columns from num_valid on get 0: padding of the vocabulary.
    """
    shared = None if logits.dtype == torch.float32 else _scratch(logits, num_valid)
    for rows in _row_blocks(logits):
        block = logits[rows, :num_valid]
        scratch = block if shared is None else shared[: block.size(0)].copy_(block)
        _exp_(scratch.sub_(log_sum_exp[rows].unsqueeze(1))).mul_(scale[rows].unsqueeze(1))
        here = columns[rows].unsqueeze(1)
        target = -scale[rows].unsqueeze(1) * (here >= 0)
        if num_valid > 0:
            scratch.scatter_add_(1, here.clamp(min=0), target)
        if scratch is not block:
            block.copy_(scratch)
    logits[:, num_valid:].zero_()
    return logits


@library.custom_op("megatron::cross_entropy_statistics", mutates_args=(), device_types="cuda")
def cross_entropy_statistics(
    logits: Tensor, columns: Tensor, num_valid: int
) -> tuple[Tensor, Tensor]:
    """Do what `row_statistics` does, reading the logits once."""
    rows = logits.size(0)
    log_sum_exp = logits.new_empty(rows, dtype=torch.float32)
    picked = torch.empty_like(log_sum_exp)
    launch(
        "cross_entropy_statistics",
        *_rows_of(logits),
        columns.contiguous(),
        num_valid,
        log_sum_exp,
        picked,
    )
    return log_sum_exp, picked


cross_entropy_statistics.register_kernel("cpu")(row_statistics)


@cross_entropy_statistics.register_fake
def _(logits: Tensor, columns: Tensor, num_valid: int) -> tuple[Tensor, Tensor]:
    rows = logits.size(0)
    return (
        logits.new_empty(rows, dtype=torch.float32),
        logits.new_empty(rows, dtype=torch.float32),
    )


@library.custom_op(
    "megatron::cross_entropy_gradient", mutates_args=("logits",), device_types="cuda"
)
def cross_entropy_gradient(
    logits: Tensor, columns: Tensor, num_valid: int, log_sum_exp: Tensor, scale: Tensor
) -> None:
    """Do what `gradient_` does, reading and writing the logits once."""
    # A scale that is one number for all rows comes as a view of it.
    launch(
        "cross_entropy_gradient",
        *_rows_of(logits),
        logits.size(1),
        columns.contiguous(),
        num_valid,
        log_sum_exp.contiguous(),
        scale.contiguous(),
    )


@cross_entropy_gradient.register_kernel("cpu")
def _(logits: Tensor, columns: Tensor, num_valid: int, log_sum_exp: Tensor, scale: Tensor) -> None:
    gradient_(logits, columns, num_valid, log_sum_exp, scale)


@cross_entropy_gradient.register_fake
def _(logits: Tensor, columns: Tensor, num_valid: int, log_sum_exp: Tensor, scale: Tensor) -> None:
    return None


def _rows_of(logits: Tensor) -> tuple[Tensor, int, int, int]:
    """Describe a matrix to a kernel: address, dtype, rows, elements from one row to the next."""
    assert logits.stride(1) == 1 or logits.size(1) == 1
    return logits, dtype_code(logits.dtype), logits.size(0), logits.stride(0)


def _fused_gradient_(
    logits: Tensor, columns: Tensor, num_valid: int, log_sum_exp: Tensor, scale: Tensor
) -> Tensor:
    cross_entropy_gradient(logits, columns, num_valid, log_sum_exp, scale)
    return logits


@dataclass(frozen=True)
class CrossEntropy:
    """One way to compute both directions."""

    row_statistics: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    gradient_: Callable[[Tensor, Tensor, int, Tensor, Tensor], Tensor]


REFERENCE = CrossEntropy(row_statistics, gradient_)
FUSED = CrossEntropy(cross_entropy_statistics, _fused_gradient_)
