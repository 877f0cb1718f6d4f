"""The local part of the cross entropy on a CPU by csrc/cpu_operations.cpp, as `cross_entropy` defines it.

Logits in fp32 or bf16, arithmetic in fp32; the same bits on any number of threads. Other dtypes go to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron.kernels import cross_entropy
from megatron.kernels.cpu_operations import DTYPES, _cpu_operations
from megatron.kernels.cross_entropy import CrossEntropy


def _can_take(logits: Tensor) -> bool:
    return logits.is_cpu and logits.dtype in DTYPES and logits.stride(1) == 1


def _check(logits: Tensor, columns: Tensor, *numbers: Tensor) -> None:
    """Addresses say neither sizes nor dtypes."""
    rows = logits.shape[:1]
    assert columns.shape == rows and columns.dtype == torch.int64
    assert all(x.shape == rows and x.dtype == torch.float32 for x in numbers)


def _call(
    function: Callable[..., None],
    logits: Tensor,
    columns: Tensor,
    num_valid: int,
    numbers: tuple[Tensor, Tensor],
    kind: str,
) -> None:
    """Call a function of the extension with what both take; numbers: two of each row."""
    first, second = numbers
    function(
        logits.data_ptr(),
        *logits.shape,
        logits.stride(0),
        columns.data_ptr(),
        num_valid,
        first.data_ptr(),
        second.data_ptr(),
        logits.dtype == torch.bfloat16,
        kind,
        torch.get_num_threads(),
    )


def row_statistics(
    logits: Tensor, columns: Tensor, num_valid: int, *, kind: str = ""
) -> tuple[Tensor, Tensor]:
    """Do what `cross_entropy.row_statistics` does, reading the logits once from memory."""
    if not _can_take(logits):
        return cross_entropy.row_statistics(logits, columns, num_valid)
    _check(logits, columns)
    columns = columns.contiguous()
    log_sum_exp = torch.empty(logits.size(0), dtype=torch.float32)
    picked = torch.empty_like(log_sum_exp)
    _call(_cpu_operations.statistics, logits, columns, num_valid, (log_sum_exp, picked), kind)
    return log_sum_exp, picked


def gradient_(
    logits: Tensor,
    columns: Tensor,
    num_valid: int,
    log_sum_exp: Tensor,
    scale: Tensor,
    *,
    kind: str = "",
) -> Tensor:
    """Do what `cross_entropy.gradient_` does, reading and writing the logits once."""
    if not _can_take(logits):
        return cross_entropy.gradient_(logits, columns, num_valid, log_sum_exp, scale)
    _check(logits, columns, log_sum_exp, scale)
    # a scale that is one number for all rows comes as a view of it
    columns, log_sum_exp, scale = columns.contiguous(), log_sum_exp.contiguous(), scale.contiguous()
    _call(_cpu_operations.gradient, logits, columns, num_valid, (log_sum_exp, scale), kind)
    return logits


CPU_CROSS_ENTROPY = CrossEntropy(row_statistics, gradient_)
