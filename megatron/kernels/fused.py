"""What the fused operations share: the precision they compute in, and the layout and memory that kernels want.

A fused operation is two custom operators of torch, forward and backward, each with a kernel of csrc/ for CUDA and the
same formulas in PyTorch for the CPU. Neither overwrites or returns an argument, so autograd and torch.compile need to
know nothing else of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.kernels.dropout import Dropout, drop_level, keep_scale

# Floats for partial sums of columns, for each processor of a GPU: enough rows of them to keep it busy.
_SCRATCH_SIZE = 1 << 16


def check_sizes(
    x: Tensor,
    *vectors: Tensor | None,
    residual: Tensor | None = None,
    row_keys: Tensor | None = None,
) -> None:
    """Hold what goes with x [..., h] against it, for addresses say neither sizes nor dtypes.

    vectors [h] and residual [..., h] of its dtype, row_keys int64 [...].
    """
    assert all(y is None or (y.shape == x.shape[-1:] and y.dtype == x.dtype) for y in vectors)
    assert residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
    assert row_keys is None or (row_keys.shape == x.shape[:-1] and row_keys.dtype == torch.int64)


def dense(x: Tensor | None) -> Tensor | None:
    """Give x, contiguous, if there is one."""
    return None if x is None else x.contiguous()


def widen(x: Tensor) -> Tensor:
    """Give x, contiguous, in the precision of the arithmetic: fp32, of fp64 fp64."""
    return x.contiguous().to(torch.promote_types(x.dtype, torch.float32))


def statistic_like(x: Tensor) -> Tensor:
    """Make a tensor for one number for each row of x: [..., h] -> fp32 [...], of fp64 fp64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty(x.shape[:-1], dtype=dtype, device=x.device)


def absent(x: Tensor) -> Tensor:
    """Stand for a result that does not exist: operators cannot return None."""
    return x.new_empty(0)


def drop(x: Tensor, row_keys: Tensor | None, probability: float) -> Tensor:
    """Drop from x [..., h] by row_keys [...]; x itself where there are none."""
    return x if row_keys is None else Dropout(probability, row_keys)(x)


def dropout_parts(dropout: Dropout | None) -> tuple[Tensor | None, float]:
    """Take apart what an operator gets as two arguments: row_keys and probability."""
    return (None, 0.0) if dropout is None else (dropout.row_keys, dropout.probability)


def dropout_arguments(
    row_keys: Tensor | None, probability: float
) -> tuple[Tensor | None, int, float]:
    """Give what kernels take for dropout: row_keys, level, scale."""
    if row_keys is None:
        return None, 0, 1.0
    return row_keys.contiguous(), drop_level(probability), keep_scale(probability)


def layout(x: Tensor) -> tuple[int, int]:
    """Give rows and columns of x [..., h]; rows of nothing are none."""
    columns = x.size(-1)
    return (x.numel() // columns if columns else 0), columns


def column_scratch(x: Tensor, num_sums: int) -> tuple[Tensor | None, int]:
    """Allocate what num_sums sums over the rows of x [..., h] take, made in two stages: the memory and its size."""
    if num_sums == 0:
        return None, 0
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    rows, columns = layout(x)
    size = min(max(rows, 1) * columns, processors * _SCRATCH_SIZE)
    scratch = torch.empty(num_sums * max(columns, size // num_sums), device=x.device)
    return scratch, scratch.numel()
