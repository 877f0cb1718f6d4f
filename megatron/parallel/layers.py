"""Linear layers and embeddings whose weights are sharded over tensor parallel processes.

Local products only: communication is `TensorParallelRegion.enter` and `.leave`, called once where several
layers share an input. Weights have torch's layout, [out, in]. Knows nothing of attention or losses.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import Replicate, Shard

from megatron.kernels.linear_product import GradientSum, Product, linear_product
from megatron.parallel.collectives import (
    TensorParallelRegion,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.parallel.parameter import Constant, Normal, ParameterFactory, local_tensor


class ColumnParallelLinear(nn.Module):
    """Y = X A^T + c with A = [A_1; …; A_t] by rows: process i computes Y_i = X A_i^T + c_i.

    The input must be inside the region; its gradient is partial, and `enter` sums it.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        parameters: ParameterFactory,
        *,
        initial: Normal,
        has_bias: bool,
        product: Product = linear_product,
    ) -> None:
        super().__init__()
        self.product = product
        self.gradient_sum: GradientSum | None = None  # of the weight, if any is kept
        self.weight = parameters.create("weight", (out_size, in_size), Shard(0), initial)
        self.bias = (
            parameters.create("bias", (out_size,), Shard(0), Constant(0.0)) if has_bias else None
        )

    def local_bias(self) -> Tensor | None:
        """Give this process's piece of the bias, [out/t], for a kernel that adds it itself."""
        return None if self.bias is None else local_tensor(self.bias, Shard(0))

    def local_weight(self) -> Tensor:
        """Give this process's rows of the weight, [out/t, in]."""
        return local_tensor(self.weight, Shard(0))

    def multiply(self, x: Tensor) -> Tensor:
        """Compute x A_i^T without the bias: [s, b, in] -> [s, b, out/t]."""
        return self.product(x, self.local_weight(), None, self.gradient_sum)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, in] -> [s, b, out/t]"""
        return self.product(x, self.local_weight(), self.local_bias(), self.gradient_sum)


class RowParallelLinear(nn.Module):
    """Y = X A^T + c with A = [A_1 … A_t] by columns: Y is the sum over processes of X_i A_i^T.

    The bias is handed out rather than added: it belongs after the sum, in the kernel that adds the residual too.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        *,
        initial: Normal,
        has_bias: bool,
        product: Product = linear_product,
    ) -> None:
        super().__init__()
        self.region = region
        self.product = product
        self.gradient_sum: GradientSum | None = None  # of the weight, if any is kept
        self.weight = parameters.create("weight", (out_size, in_size), Shard(1), initial)
        self.bias = (
            parameters.create("bias", (out_size,), Replicate(), Constant(0.0)) if has_bias else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, in/t] -> [s, b, out] or [s/t, b, out], and the bias [out]. Collective over tp."""
        weight = local_tensor(self.weight, Shard(1))
        out = self.region.leave(self.product(x, weight, None, self.gradient_sum))
        if self.bias is None:
            return out, None
        return out, local_tensor(self.bias, self.region.outside_grad)


class PartialGradientLinear(nn.Module):
    """Y = X A[rows]^T + c[rows] with A whole on every process, each using the rows its share of the work needs.

    Key/value heads that tensor parallelism cannot divide. The gradient of A is the sum of the processes'.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        *,
        initial: Normal,
        has_bias: bool,
        rows: slice,
        product: Product = linear_product,
    ) -> None:
        super().__init__()
        self.region = region
        self.product = product
        self.rows = rows
        self.weight = parameters.create("weight", (out_size, in_size), Replicate(), initial)
        self.bias = (
            parameters.create("bias", (out_size,), Replicate(), Constant(0.0)) if has_bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, in] -> [s, b, number of rows]"""
        weight = local_tensor(self.weight, self.region.inside_grad)[self.rows]
        bias = None
        if self.bias is not None:
            bias = local_tensor(self.bias, self.region.inside_grad)[self.rows]
        return self.product(x, weight, bias, None)


class RowSum(Protocol):
    """Where gradients of a table [v, h] add up that are 0 but for some rows."""

    def add_rows(self, ids: Tensor, grad: Tensor) -> None:
        """Add rows grad [r, h] to those of ids, int64 [r]."""
        ...


class _Rows(torch.autograd.Function):
    """Rows of a table whose gradient is never made as a whole: as many rows as there are tokens are not 0."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, row_sum: RowSum) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.row_sum = row_sum
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.row_sum.add_rows(ids.flatten(), grad.flatten(0, -2))
        return None, None, None


class VocabParallelEmbedding(nn.Module):
    """Rows of a [v, h] table, process i holding rows i v/t … (i+1) v/t - 1."""

    def __init__(
        self,
        num_embeddings: int,
        hidden_size: int,
        parameters: ParameterFactory,
        region: TensorParallelRegion,
        *,
        initial: Normal,
    ) -> None:
        super().__init__()
        self.region = region
        self.row_sum: RowSum | None = None  # of the weight's gradients, if any takes rows
        self.weight = parameters.create("weight", (num_embeddings, hidden_size), Shard(0), initial)

    def local_weight(self) -> Tensor:
        """Give this process's rows, [v/t, h]; a tied output layer multiplies with them."""
        return local_tensor(self.weight, Shard(0))

    def forward(self, ids: Tensor) -> Tensor:
        """ids [s, b] -> [s, b, h] or, with sequence parallel, [s/t, b, h]. Collective over tp."""
        weight = self.local_weight()
        if self.region.size == 1:
            return self._rows(ids, weight)
        local_ids = ids - self.region.rank * weight.size(0)
        elsewhere = (local_ids < 0) | (local_ids >= weight.size(0))
        rows = self._rows(local_ids.masked_fill(elsewhere, 0), weight)
        rows = rows.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        # every id is one process's: the sum picks its row and is exact
        if self.region.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(rows, self.region.group)
        return reduce_from_tensor_model_parallel_region(rows, self.region.group)

    def _rows(self, ids: Tensor, weight: Tensor) -> Tensor:
        if self.row_sum is None:
            return F.embedding(ids, weight)
        rows: Tensor = _Rows.apply(ids, weight, self.row_sum)
        return rows
