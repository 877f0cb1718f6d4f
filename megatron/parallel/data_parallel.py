"""Data parallelism: gradients are summed over the data parallel axes, in fp32, by torch's `fully_shard`.

A process that shares them with no other sums them by itself (`MasterWeights`).

Processes that share sequences (context parallel) sum theirs like those that read different ones. With
--use-distributed-optimizer the optimizer's fp32 state is sharded over dp_shard, which is all of both kinds or, with
several instances, a part of them; without it that axis has size 1 and the same engine only reduces. Parameters stay gathered between forward and backward (ZeRO-1's traffic).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from megatron.errors import ConfigError
from megatron.kernels.accumulate import add_product_, product_in_fp32
from megatron.parallel.context import ParallelContext
from megatron.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.parallel.master_weights import MasterWeights
from megatron.parallel.parameter import local_part

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


class DataParallel(Protocol):
    """A model whose gradients are summed over data parallel processes in fp32, into those of its fp32 parameters.

    It computes in another dtype, perhaps; its modules then hold the parameters only outside of passes.
    """

    def set_gradient_sync(self, is_last_micro_batch: bool) -> None:
        """Reduce gradients in the coming backward only if it is the step's last one; else accumulate locally."""
        ...

    def accumulate_in_fp32(self) -> None:
        """Move gradients that came about outside of `backward`, in its dtype, to the fp32 sums of earlier ones."""
        ...

    def finish(self) -> None:
        """End a step's passes: the parameters, back in their places, have whole gradients. Collective over tp."""
        ...

    def fuse_gradient_accumulation(self) -> None:
        """Let products add gradients of weights to the fp32 sums; of weights whose gradient needs no sum over tp.

        Each backward pass has to compute all gradients at once.
        """
        ...


def shard_data_parallel(
    model: nn.Module,
    layers: list[nn.Module],
    context: ParallelContext,
    compute_dtype: torch.dtype,
) -> DataParallel:
    """Let a model compute in a dtype with gradients summed over context.dp_mesh: sums, not means.

    The loss carries the whole batch's divisor. The model's fp32 parameters become shards where it has other processes
    to share them with.
    """
    if context.dp_mesh.size() == 1:
        return MasterWeights(model, context, compute_dtype)
    return FullyShardedModel(model, layers, context, compute_dtype)


class FullyShardedModel:
    """A model each of whose layers, and the rest, is a group of torch's `fully_shard`; a `DataParallel`."""

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Module],
        context: ParallelContext,
        compute_dtype: torch.dtype,
    ) -> None:
        """Wrap each of layers and then the model itself in place.

        fp32 parameters become shards over context.dp_mesh; forward sees them gathered in compute_dtype.
        """
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute_dtype == torch.float32 else compute_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        if context.tp_size == 1:
            _make_plain(model)
        for module in (*layers, model):
            fully_shard(module, mesh=context.dp_mesh, mp_policy=policy, reshard_after_forward=False)
        assert isinstance(model, FSDPModule)
        self._model = model
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                # A plain sum: gloo has no reduction with a built-in factor.
                module.set_force_sum_reduction_for_comms(True)
        if context.device.type == "cpu" and context.dp_mesh.size(1) == 1:
            for part, group in _groups(model):
                part.set_custom_reduce_scatter(cast("ReduceScatter", _SumsInPlace(group)))
        keep_on_host(model)

    def set_gradient_sync(self, is_last_micro_batch: bool) -> None:
        """Reduce gradients in the coming backward only if it is the step's last one; else accumulate locally."""
        self._model.set_requires_gradient_sync(is_last_micro_batch)
        self._model.set_is_last_backward(is_last_micro_batch)
        # Otherwise every micro-batch would gather the parameters anew.
        self._model.set_reshard_after_backward(is_last_micro_batch)

    def accumulate_in_fp32(self) -> None:
        """Move gradients that came about outside of `backward`, in its dtype, to the fp32 sums of earlier ones."""
        for _, group in _groups(self._model):
            if not group.reduce_grads:
                group.post_backward()

    def finish(self) -> None:
        """Let go of gathered weights: a step's last backward pass has done so, a validation has none."""
        for part, _ in _groups(self._model):
            part.reshard()

    def fuse_gradient_accumulation(self) -> None:
        """Let products add gradients of weights to `fully_shard`'s own fp32 sums over micro-batches."""
        layers = {
            module.weight: module
            for module in self._model.modules()
            if isinstance(module, ColumnParallelLinear | RowParallelLinear)
        }
        for _, group in _groups(self._model):
            _check_sums(group)
            for parameter in group.fsdp_params:
                layer = layers.get(parameter.sharded_param)
                if layer is not None:
                    layer.gradient_sum = _StepSum(group, parameter)


def _make_plain(model: nn.Module) -> None:
    """Take `DTensor`s over a single process for what they are: each costs the host several operations a pass."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            assert isinstance(parameter, DTensor)
            module.register_parameter(name, nn.Parameter(local_part(parameter).detach()))


class _SumsInPlace:
    """Memory for the gradients of one group of parameters that are not scattered: torch's `ReduceScatter` for a CPU.

    `fully_shard` packs gradients in one piece of memory and takes the sums from another, to which it copies them where
    there is nobody to share them with. Here both are one tensor, which it then copies nothing to, and which stays for
    the next step: fresh pages cost a CPU as much as what is done to them.
    """

    def __init__(self, group: Any) -> None:
        # Any: torch's FSDPParamGroup
        self._group = group
        self._memory: Tensor | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Give the memory of the last step, unless its gradients are still there or have another size."""
        memory = self._memory
        is_free = all(held.sharded_param.grad is None for held in self._group.fsdp_params)
        if memory is None or not is_free or memory.shape != (*size,) or memory.dtype != dtype:
            memory = self._memory = torch.empty(size, dtype=dtype, device=device)
        return memory

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Give a single process its own part."""
        assert group.size() == 1
        output_tensor.copy_(input_tensor)


class _OnHost:
    """A tensor that `fully_shard` does not see as one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def keep_on_host(model: nn.Module) -> None:
    """Give forward its keyword arguments on the CPU as they are, behind whatever hooks it has.

    `fully_shard` copies every tensor to its device first: lengths and numbers that the host derives others from would
    come back by waiting for the device.
    """

    def hide(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {
            name: _OnHost(value)
            if isinstance(value, Tensor) and value.device.type == "cpu"
            else value
            for name, value in kwargs.items()
        }

    def show(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {
            name: value.tensor if isinstance(value, _OnHost) else value
            for name, value in kwargs.items()
        }

    model.register_forward_pre_hook(hide, prepend=True, with_kwargs=True)
    model.register_forward_pre_hook(show, with_kwargs=True)


class _StepSum:
    """The gradient of one weight over the micro-batches of a step, which the last one's backward reduces and lets go.

    It is `fully_shard`'s own: what it casts gradients to fp32 for and adds them to, where autograd hands it some. The
    only micro-batch of a step leaves its gradient to autograd, for there is nothing to add it to.
    """

    def __init__(self, group: Any, parameter: Any) -> None:
        # Any: torch's FSDPParamGroup and FSDPParam
        self._group = group
        self._parameter = parameter

    def add(self, grad: Tensor, x: Tensor) -> bool:
        """Add grad^T x, of grad [r, out/t] and x [r, in]; False in the only backward pass of a step."""
        total = _sum_of(self._parameter)
        if total is not None:
            add_product_(local_part(total), grad.t(), x)
            return True
        if self._group.reduce_grads:
            return False
        weight, total = self._parameter.unsharded_param, product_in_fp32(grad.t(), x)
        if isinstance(weight, DTensor):
            mesh, placements = weight.device_mesh, weight.placements
            total = DTensor.from_local(total, mesh, placements, run_check=False)
        if _is_sum_a_gradient(self._parameter):
            weight.grad = total
        else:
            self._parameter.unsharded_accumulated_grad = total
        return True


def _is_sum_a_gradient(parameter: Any) -> bool:
    """Whether a parameter's gradient is itself the sum, in fp32 between the backward passes of a step: torch 2.15."""
    return hasattr(parameter, "unsharded_grad_dtype")


def _sum_of(parameter: Any) -> Tensor | None:
    """Give the sum that `fully_shard` keeps for later backward passes of a step (of torch's FSDPParam)."""
    is_gradient = _is_sum_a_gradient(parameter)
    total: Tensor | None = (
        parameter.unsharded_param.grad if is_gradient else parameter.unsharded_accumulated_grad
    )
    return total


def _groups(model: nn.Module) -> Iterator[tuple[FSDPModule, Any]]:
    """Give a model's parts and what `fully_shard` made of them: groups of parameters (torch's FSDPParamGroup)."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            group = module._get_fsdp_state()._fsdp_param_group
            if group is not None:
                yield module, group


def _check_sums(group: Any) -> None:
    """Raise ConfigError unless torch keeps its sums where it did when this was written (2.11 to 2.15)."""
    has_sums = hasattr(group, "reduce_grads") and all(
        hasattr(parameter, "sharded_param")
        and (_is_sum_a_gradient(parameter) or hasattr(parameter, "unsharded_accumulated_grad"))
        for parameter in getattr(group, "fsdp_params", [None])
    )
    if not has_sums:
        raise ConfigError(
            f"torch {torch.__version__} does not keep the sums of gradients where 2.11 to 2.15 do; give "
            "--gradient-accumulation-fusion off, or take one of these"
        )
