"""What a layer does between its products, on a CPU: one pass over memory forward and one backward.

Each is an autograd function that calls csrc/cpu_operations.cpp; its reference is in the file of the operation (`bias_gelu`,
`layer_norm`, `bias_dropout_residual`). Tensors in fp32 or bf16, arithmetic in fp32, rounded once; the same
bits on any number of threads. Backward keeps what the references keep, or less. What the kernels do not take, tensors of
several dtypes, not contiguous ones or those of the meta device, goes to the reference. These are no custom operators:
torch's dispatch of those costs more a call than the work of a small layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.kernels import bias_dropout_residual as sum_reference
from megatron.kernels import bias_gelu as gelu_reference
from megatron.kernels import layer_norm as norm_reference
from megatron.kernels.cpu_library import address
from megatron.kernels.dropout import Dropout, drop_level, keep_scale
from megatron.kernels.fused import check_sizes

try:
    from megatron.kernels import _cpu_operations
except ImportError:  # cpu_library says why
    _cpu_operations = None  # type: ignore[assignment]

DTYPES = (torch.float32, torch.bfloat16)
_NO_DROPOUT = (0, 0, 1.0)


def kinds() -> list[str]:
    """Name the kinds of kernels that the processor runs, the fastest first."""
    return _cpu_operations.kinds()


def _can_take(x: Tensor, *others: Tensor | None) -> bool:
    """Say whether all are contiguous and of one dtype that the kernels know, and not on the meta device."""
    dtype = x.dtype
    return (
        x.is_cpu
        and dtype in DTYPES
        and x.is_contiguous()
        and all(y is None or (y.dtype == dtype and y.is_contiguous()) for y in others)
    )


def _size(x: Tensor, kind: str) -> tuple[int, int, bool, str, int]:
    """Give what kernels take last: rows, columns, whether bf16, kind, threads."""
    columns = x.size(-1)
    rows = x.numel() // columns if columns else 0
    return rows, columns, x.dtype == torch.bfloat16, kind, torch.get_num_threads()


def _drop(row_keys: Tensor | None, probability: float) -> tuple[int, int, float]:
    """Give what kernels take for dropout: address of keys, level, scale."""
    if row_keys is None:
        return _NO_DROPOUT
    return row_keys.data_ptr(), drop_level(probability), keep_scale(probability)


def _dropout_parts(dropout: Dropout | None) -> tuple[Tensor | None, float]:
    return (None, 0.0) if dropout is None else (dropout.row_keys.contiguous(), dropout.probability)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, kind: str) -> Tensor:
        out = torch.empty_like(x)
        _cpu_operations.gelu(x.data_ptr(), address(bias), out.data_ptr(), *_size(x, kind))
        ctx.save_for_backward(x, bias)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, bias = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        d_bias = None if bias is None else torch.empty_like(bias)
        _cpu_operations.gelu_backward(
            dy.data_ptr(),
            x.data_ptr(),
            address(bias),
            dx.data_ptr(),
            address(d_bias),
            *_size(x, ctx.kind),
        )
        return dx, d_bias, None


def cpu_bias_gelu(x: Tensor, bias: Tensor | None, *, kind: str = "") -> Tensor:
    """Compute what `bias_gelu` does; x is left alone. Backward keeps x."""
    if not _can_take(x, bias):
        return gelu_reference.bias_gelu(x, bias)
    check_sizes(x, bias)
    out: Tensor = _BiasGelu.apply(x, bias, kind)
    return out


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, kind: str
    ) -> Tensor:
        out, statistics = torch.empty_like(x), _statistics_of(x)
        _cpu_operations.norm(
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            epsilon,
            out.data_ptr(),
            statistics.data_ptr(),
            *_size(x, kind),
        )
        ctx.save_for_backward(x, statistics, weight)
        ctx.kind = kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        dx, _, d_weight, d_bias, _ = _norm_backward(
            dy, None, ctx.saved_tensors, None, probability=0.0, has_bias=False, kind=ctx.kind
        )
        return dx, d_weight, d_bias, None, None


def _statistics_of(x: Tensor) -> Tensor:
    """Make what holds mean and rstd of each row."""
    return torch.empty((*x.shape[:-1], 2), dtype=torch.float32)


def _norm_backward(
    dy: Tensor,
    d_total: Tensor | None,
    kept: tuple[Tensor, Tensor, Tensor],
    row_keys: Tensor | None,
    *,
    probability: float,
    has_bias: bool,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Give d_residual, dx, which without dropout is d_residual, d_weight, d_norm_bias and, with a bias, d_bias.

    Of total = residual + dropout(x + bias) and its norm, whose gradients are d_total and dy. kept: total, the statistics
    of its rows, and the norm's weight.
    """
    total, statistics, weight = kept
    dy, d_residual = dy.contiguous(), torch.empty_like(total)
    d_total = None if d_total is None else d_total.contiguous()
    dx = d_residual if row_keys is None else torch.empty_like(total)
    d_weight, d_norm_bias = torch.empty_like(weight), torch.empty_like(weight)
    d_bias = torch.empty_like(weight) if has_bias else None
    _cpu_operations.norm_backward(
        dy.data_ptr(),
        address(d_total),
        total.data_ptr(),
        statistics.data_ptr(),
        weight.data_ptr(),
        _drop(row_keys, probability),
        d_residual.data_ptr(),
        dx.data_ptr(),
        d_weight.data_ptr(),
        d_norm_bias.data_ptr(),
        address(d_bias),
        *_size(total, kind),
    )
    return d_residual, dx, d_weight, d_norm_bias, d_bias


def cpu_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, *, kind: str = ""
) -> Tensor:
    """Compute what `layer_norm` does. Backward keeps x and two numbers for each row."""
    if not _can_take(x, weight, bias):
        return norm_reference.layer_norm(x, weight, bias, epsilon)
    check_sizes(x, weight, bias)
    out: Tensor = _LayerNorm.apply(x, weight, bias, epsilon, kind)
    return out


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        row_keys: Tensor | None,
        probability: float,
        kind: str,
    ) -> Tensor:
        _cpu_operations.add(
            x.data_ptr(),
            address(bias),
            residual.data_ptr(),
            _drop(row_keys, probability),
            x.data_ptr(),
            *_size(x, kind),
        )
        ctx.mark_dirty(x)
        ctx.save_for_backward(row_keys)
        ctx.probability, ctx.has_bias, ctx.kind = probability, bias is not None, kind
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, d_bias = _sum_backward(ctx, dy, *ctx.saved_tensors)
        return dx, d_bias, dy, None, None, None


def _sum_backward(ctx: Any, dy: Tensor, row_keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Give dx, which without dropout is dy, and with a bias d_bias."""
    if row_keys is None and not ctx.has_bias:
        return dy, None
    dy = dy.contiguous()
    dx = dy if row_keys is None else torch.empty_like(dy)
    d_bias = dy.new_empty(dy.size(-1)) if ctx.has_bias else None
    _cpu_operations.add_backward(
        dy.data_ptr(),
        _drop(row_keys, ctx.probability),
        dx.data_ptr(),
        address(d_bias),
        *_size(dy, ctx.kind),
    )
    return dx, d_bias


def cpu_bias_dropout_residual(
    x: Tensor, bias: Tensor | None, residual: Tensor, dropout: Dropout | None, *, kind: str = ""
) -> Tensor:
    """Compute what `bias_dropout_residual` does. Overwrites x. Backward keeps no activation."""
    if not _can_take(x, bias, residual):
        return sum_reference.bias_dropout_residual(x, bias, residual, dropout)
    row_keys, probability = _dropout_parts(dropout)
    check_sizes(x, bias, residual=residual, row_keys=row_keys)
    out: Tensor = _Sum.apply(x, bias, residual, row_keys, probability, kind)
    return out


class _SumAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        row_keys: Tensor | None,
        probability: float,
        weight: Tensor,
        norm_bias: Tensor,
        epsilon: float,
        kind: str,
    ) -> tuple[Tensor, Tensor]:
        # autograd does not allow to change a view here
        total = x if x._base is None else torch.empty_like(x)
        normed, statistics = torch.empty_like(x), _statistics_of(x)
        _cpu_operations.add_norm(
            x.data_ptr(),
            address(bias),
            residual.data_ptr(),
            _drop(row_keys, probability),
            total.data_ptr(),
            weight.data_ptr(),
            norm_bias.data_ptr(),
            epsilon,
            normed.data_ptr(),
            statistics.data_ptr(),
            *_size(x, kind),
        )
        if total is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(total, statistics, weight, row_keys)
        ctx.probability, ctx.has_bias, ctx.kind = probability, bias is not None, kind
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_total: Tensor | None, d_normed: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        total, statistics, weight, row_keys = ctx.saved_tensors
        if d_normed is None:
            if d_total is None:
                return (None,) * 9
            dx, d_bias = _sum_backward(ctx, d_total, row_keys)
            return dx, d_bias, d_total, *(None,) * 6
        d_residual, dx, d_weight, d_norm_bias, d_bias = _norm_backward(
            d_normed,
            d_total,
            (total, statistics, weight),
            row_keys,
            probability=ctx.probability,
            has_bias=ctx.has_bias,
            kind=ctx.kind,
        )
        return dx, d_bias, d_residual, None, None, d_weight, d_norm_bias, None, None


def cpu_bias_dropout_residual_layer_norm(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout: Dropout | None,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
    *,
    kind: str = "",
) -> tuple[Tensor, Tensor]:
    """Compute what `bias_dropout_residual_layer_norm` does. May overwrite x. Backward keeps the sum."""
    if not _can_take(x, bias, residual, weight, norm_bias):
        return sum_reference.bias_dropout_residual_layer_norm(
            x, bias, residual, dropout, weight, norm_bias, epsilon
        )
    row_keys, probability = _dropout_parts(dropout)
    check_sizes(x, bias, weight, norm_bias, residual=residual, row_keys=row_keys)
    total, normed = _SumAndNorm.apply(
        x, bias, residual, row_keys, probability, weight, norm_bias, epsilon, kind
    )
    return total, normed
