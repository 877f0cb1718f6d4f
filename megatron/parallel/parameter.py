"""The one way to make a parameter: by name, whole shape, placement over tp and initial distribution.

A parameter is an fp32 `DTensor` over the tensor parallel axis, also where that has one process, so that data
parallelism, optimizer, clipping and checkpoints read from it how it is sharded. How its gradient is reduced is said
where it is used: `local_tensor`. Weight decay follows from the shape: matrices decay, vectors do not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from megatron.parallel.random import fill_normal


@dataclass(frozen=True)
class Normal:
    """Initial values from N(0, std^2), for matrices."""

    std: float


@dataclass(frozen=True)
class Constant:
    """Initial values that are all the same."""

    value: float


@dataclass(frozen=True)
class ParameterFactory:
    """Makes parameters below a prefix of names; bit-equal initial values under every layout."""

    tp_mesh: DeviceMesh
    device: torch.device
    seed: int
    prefix: str = ""

    @property
    def tp_size(self) -> int:
        return self.tp_mesh.size()

    def scope(self, name: str) -> ParameterFactory:
        """Give a factory whose names start with prefix.name."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def create(
        self, name: str, shape: tuple[int, ...], placement: Placement, initial: Normal | Constant
    ) -> nn.Parameter:
        """Make the parameter prefix.name of a whole shape, holding this process's part of it.

        The sharded dim must be divisible by the tensor parallel size.
        """
        local_shape, first = list(shape), [0] * len(shape)
        if isinstance(placement, Shard):
            dim = placement.dim
            assert shape[dim] % self.tp_size == 0, f"{self.prefix}{name}: {shape} over {placement}"
            local_shape[dim] //= self.tp_size
            first[dim] = self.tp_mesh.get_local_rank() * local_shape[dim]
        else:
            assert isinstance(placement, Replicate)
        local = torch.empty(local_shape, dtype=torch.float32, device=self.device)
        if not local.is_meta:
            self._initialize(local, f"{self.prefix}{name}", initial, shape, first)
        return nn.Parameter(DTensor.from_local(local, self.tp_mesh, [placement], run_check=False))

    def _initialize(
        self,
        local: Tensor,
        name: str,
        initial: Normal | Constant,
        shape: tuple[int, ...],
        first: list[int],
    ) -> None:
        if isinstance(initial, Constant):
            local.fill_(initial.value)
            return
        row, column = first  # only matrices are drawn
        fill_normal(
            local,
            self.seed,
            name,
            std=initial.std,
            num_columns=shape[1],
            first=(row, column),
        )


class _LocalTensor(torch.autograd.Function):
    """As `DTensor.to_local`, which in torch 2.11 makes zeros of a gradient that does not come this way."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor, grad_placement: Placement) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mesh, ctx.grad_placement = parameter.device_mesh, grad_placement
        local: Tensor = parameter.to_local()
        return local.view_as(local)  # autograd's own, for others may hold the parameter's

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        return DTensor.from_local(grad, ctx.mesh, [ctx.grad_placement], run_check=False), None


def local_part(tensor: Tensor) -> Tensor:
    """Give this process's part of a tensor, in memory that both share and outside of what autograd sees."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_tensor(parameter: Tensor, grad_placement: Placement) -> Tensor:
    """Give this process's part of a parameter to compute with, and say how its gradient lies over tp.

    Shard: complete for this shard. Replicate: complete and equal on every process. Partial: to be summed over tp,
    which the reader of the gradient does (`fully_shard` does). A plain parameter is this process's part already: of a
    model that only predicts, or whose layers no process of tp shares.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    local: Tensor = _LocalTensor.apply(parameter, grad_placement)
    return local
