"""Weights whose gradients no data parallel process shares: fp32 parameters, and what a model computes with.

Where `fully_shard` gathers weights and packs, reduces and unpacks gradients, there is here one cast at the beginning of
a step, and an addition where a backward pass leaves a gradient. Parameters stay `DTensor`s over tp. In their place a
model sees plain tensors in the dtype it computes in, or `DTensor`s where tp has several processes: these know which
gradients are partial. Knows nothing of schedules and stages.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from megatron.kernels.accumulate import add_product_, product_in_fp32
from megatron.parallel.context import ParallelContext
from megatron.parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.parallel.parameter import local_part


class MasterWeights:
    """A model's weights in fp32 and in its dtype; `data_parallel.DataParallel` where nobody shares gradients.

    From a step's first forward pass until `finish` the model's modules hold what it computes with, otherwise the fp32
    parameters, which may change only then. In fp32 the two share their memory.
    """

    def __init__(
        self, model: nn.Module, context: ParallelContext, compute_dtype: torch.dtype
    ) -> None:
        self._tp_group = context.tp_group
        self._is_cast = compute_dtype != torch.float32
        self._is_shown = False
        places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                places.setdefault(parameter, []).append((module, name))
        pieces = [local_part(parameter) for parameter in places]
        if self._is_cast:
            # kept from step to step: fresh pages cost a CPU as much as what is done to them
            pieces = [torch.empty_like(piece, dtype=compute_dtype) for piece in pieces]
        self._weights = [
            _Weight(parameter, where, piece)
            for (parameter, where), piece in zip(places.items(), pieces, strict=True)
        ]
        if context.device.type == "cpu":  # a GPU adds rows in any order
            for weight in self._weights:
                for module, name in weight.places:
                    if name == "weight" and isinstance(module, VocabParallelEmbedding):
                        module.row_sum = weight
        model.register_forward_pre_hook(self._show)

    @torch.no_grad()
    def _show(self, *_: object) -> None:
        """Let the model see today's weights in its dtype, unless it does."""
        if self._is_shown:
            return
        for weight in self._weights:  # of another step, its gradient would be summed over tp twice
            assert not weight.is_partial or weight.parameter.grad is None
        if self._is_cast:
            pieces = [local_part(weight.computed) for weight in self._weights]
            torch._foreach_copy_(pieces, [local_part(weight.parameter) for weight in self._weights])
        for weight in self._weights:
            weight.show(weight.computed)
        self._is_shown = True

    def set_gradient_sync(self, is_last_micro_batch: bool) -> None:
        """Say whether the coming backward pass is the step's last one."""
        for weight in self._weights:
            weight.is_last_micro_batch = is_last_micro_batch

    @torch.no_grad()
    def accumulate_in_fp32(self) -> None:
        """Move gradients that came about outside of `backward`, in its dtype, to the fp32 sums of earlier ones."""
        for weight in self._weights:
            weight.take_gradient()

    @torch.no_grad()
    def finish(self) -> None:
        """End a step's passes: the parameters, back in their places, have whole gradients. Collective over tp."""
        if not self._is_shown:
            return
        for weight in self._weights:
            weight.show(weight.parameter)
            weight.add_waiting_rows()
        self._is_shown = False
        sums = [
            local_part(w.parameter.grad)
            for w in self._weights
            if w.is_partial and w.parameter.grad is not None
        ]
        if sums:
            flat = [total.view(-1) for total in sums]
            whole = torch.cat(flat)  # one collective for all
            dist.all_reduce(whole, group=self._tp_group)
            torch._foreach_copy_(flat, list(whole.split([total.numel() for total in flat])))

    def fuse_gradient_accumulation(self) -> None:
        """Let products add gradients of weights to their sums; of weights whose gradient needs no sum over tp.

        Each backward pass has to compute all gradients at once.
        """
        for weight in self._weights:
            for module, name in weight.places:
                if name == "weight" and isinstance(
                    module, ColumnParallelLinear | RowParallelLinear
                ):
                    module.gradient_sum = weight


class _Weight:
    """One parameter, what is computed with in its place, and where its gradients add up: in the parameter's."""

    def __init__(
        self, parameter: nn.Parameter, places: list[tuple[nn.Module, str]], piece: Tensor
    ) -> None:
        """places: the modules that hold the parameter, and under what name. piece: memory for this process's part."""
        assert isinstance(parameter, DTensor)
        self.parameter, self.places = parameter, places
        self._mesh, self._placements = parameter.device_mesh, parameter.placements
        self.computed = nn.Parameter(piece if self._mesh.size() == 1 else self._over_tp(piece))
        self.computed.register_post_accumulate_grad_hook(lambda _: self.take_gradient())
        self.is_partial = False  # what each process of tp has is a part of the sum
        self.is_last_micro_batch = False
        self._kept: Tensor | None = None  # the last step's sum, whose memory the next one takes
        self._waiting: list[tuple[Tensor, Tensor]] = []  # arguments of `add_rows`

    def _over_tp(self, local: Tensor) -> Tensor:
        return DTensor.from_local(local, self._mesh, self._placements, run_check=False)

    def show(self, weight: nn.Parameter) -> None:
        """Put it in the parameter's places, without the checks of a module's `__setattr__`."""
        for module, name in self.places:
            module._parameters[name] = weight

    def take_gradient(self) -> None:
        """Add what autograd has left to the sum. Without recording: called in a backward pass, or after one."""
        grad, self.computed.grad = self.computed.grad, None
        if grad is None:
            return
        if isinstance(grad, DTensor):
            self.is_partial = isinstance(grad.placements[0], Partial)
            grad = local_part(grad)
        if self.parameter.grad is not None:
            local_part(self.parameter.grad).add_(grad)
        else:
            self._begin_sum(grad)
        self.add_waiting_rows()

    def add_rows(self, ids: Tensor, grad: Tensor) -> None:
        """Add rows grad [r, h] to those of ids, int64 [r], of a sum that is there; others wait for one.

        A tied LM head's gradient comes right behind the first ones and begins it.
        """
        has_sum = self.parameter.grad is not None
        self._waiting.append((ids, grad))
        if has_sum or len(self._waiting) > 1:
            self.add_waiting_rows()

    def add_waiting_rows(self) -> None:
        """Add rows that wait to the sum, or to zeros."""
        if not self._waiting:
            return
        if self.parameter.grad is None:
            self._begin_sum(torch.zeros_like(local_part(self.parameter)))
        assert self.parameter.grad is not None
        for ids, grad in self._waiting:
            local_part(self.parameter.grad).index_add_(0, ids, grad.float())
        self._waiting.clear()

    def add(self, grad: Tensor, x: Tensor) -> bool:
        """Add grad^T x, of grad [r, out/t] and x [r, in]; False in the only backward pass of a step.

        Its gradient autograd may keep as it is, for there is nothing to add it to.
        """
        if self.parameter.grad is not None:
            add_product_(local_part(self.parameter.grad), grad.t(), x)
            return True
        if self.is_last_micro_batch:
            return False
        self._begin_sum(product_in_fp32(grad.t(), x))
        return True

    def _begin_sum(self, grad: Tensor) -> None:
        """Make the gradient, whose memory nobody else has, the sum."""
        if self._kept is not None:
            local_part(self._kept).copy_(grad)
            self.parameter.grad = self._kept
            return
        self.parameter.grad = self._over_tp(grad.float())
        if grad.device.type == "cpu" and grad.dtype != torch.float32:
            self._kept = self.parameter.grad
