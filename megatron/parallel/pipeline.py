"""Running micro-batches through the stages: torch's pipeline schedules, or a plain loop without a pipeline.

`Pipeline` is the one adapter between our stages and `torch.distributed.pipelining`. It knows a stage as a module
that takes token ids or hidden states and gives hidden states or, at the end, the loss of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
)
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.pipelining.stage import _PipelineStageBase
from torch.distributed.tensor import DTensor

from megatron.parallel.context import ParallelContext
from megatron.parallel.data_parallel import set_gradient_sync


class Batch(Protocol):
    """This process's part of a step, micro-batch after micro-batch. B = micro-batches x micro-batch size."""

    @property
    def tokens(self) -> Tensor: ...  # int64 [B, s]

    @property
    def labels(self) -> Tensor: ...  # int64 [B, s]

    @property
    def loss_mask(self) -> Tensor: ...  # fp32 [B, s]

    @property
    def sample_ids(self) -> Tensor: ...  # int64 [B]

    @property
    def position_ids(self) -> Tensor | None: ...  # int64 [B, s]; None: each sample counts from 0

    @property
    def document_starts(self) -> Tensor | None: ...  # int64 [B, s], on the CPU; None: no boundaries


@dataclass(frozen=True)
class StageLayers:
    """The slice of the model that one stage holds. A process holds several when interleaved."""

    index: int
    num_stages: int
    layers: range

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.num_stages - 1


def assign_stages(split: list[range], context: ParallelContext) -> list[StageLayers]:
    """Give the stages of this process: stage k, with layers split[k], lies on pipeline rank k mod pp."""
    return [
        StageLayers(index, len(split), split[index])
        for index in range(context.pp_rank, len(split), context.pp_size)
    ]


@dataclass(frozen=True)
class BoundaryShape:
    """What travels between stages: [s, b, h] (s divided by tp with sequence parallel), and what ends the last one."""

    micro_batch_size: int
    seq_length: int
    hidden: tuple[int, int, int]
    dtype: torch.dtype


class Pipeline:
    """The forward and backward passes of a step on this process."""

    def __init__(
        self,
        stages: list[StageLayers],
        modules: list[nn.Module],
        context: ParallelContext,
        shape: BoundaryShape,
    ) -> None:
        """Take the stages of this process and their modules. Collective over pp."""
        self._stages = stages
        self._modules = modules
        self._context = context
        self._shape = shape
        self._schedules: dict[int, _PipelineSchedule] = {}
        self._loss_factor = 1.0
        self._is_first = stages[0].is_first
        self._is_last = stages[-1].is_last
        if context.pp_size > 1:
            # NCCL makes a group's communicator in its first call, which all of the group have to join; the
            # schedule's first call is between neighbours only.
            dist.all_reduce(torch.zeros(1, device=context.device), group=context.pp_group)

    def forward_backward(self, batch: Batch, loss_factor: float) -> Tensor:
        """Accumulate the gradients of loss_factor x the sum of the batch's token losses.

        Returns that sum (without the factor) of this process's samples, fp32 [], on the last stage and 0 elsewhere;
        it is replicated over tp. Collective over pp, dp and tp: every process calls it once a step.
        """
        self._loss_factor = loss_factor
        for module in self._modules:
            module.train()
        if self._context.pp_size > 1:
            return self._run_schedule(batch, train=True) / loss_factor
        total = torch.zeros((), device=self._context.device)
        (module,) = self._modules
        micro_batches = list(self._split(batch))
        for number, (tokens, mask, inputs) in enumerate(micro_batches, start=1):
            set_gradient_sync(module, is_last_micro_batch=number == len(micro_batches))
            losses = module(tokens, **inputs)
            loss = (losses * mask).sum()
            (loss * loss_factor).backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Sum the token losses without gradients or dropout. Returns and collective as `forward_backward`."""
        for module in self._modules:
            module.eval()
        self._loss_factor = 1.0
        if self._context.pp_size > 1:
            return self._run_schedule(batch, train=False)
        total = torch.zeros((), device=self._context.device)
        (module,) = self._modules
        for tokens, mask, inputs in self._split(batch):
            total += (module(tokens, **inputs) * mask).sum()
        return total

    def _split(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Give tokens, loss mask and `_inputs` of each micro-batch."""
        size = self._shape.micro_batch_size
        parts = {name: tensor.split(size) for name, tensor in self._inputs(batch).items()}
        pairs = zip(batch.tokens.split(size), batch.loss_mask.split(size), strict=True)
        for number, (tokens, mask) in enumerate(pairs):
            yield tokens, mask, {name: part[number] for name, part in parts.items()}

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Name what the stages of this process read besides tokens or hidden states, a row a sample."""
        inputs = {"sample_ids": batch.sample_ids}
        if batch.document_starts is not None:
            inputs["document_starts"] = batch.document_starts
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if self._is_last:
            inputs["labels"] = batch.labels
        return inputs

    def _run_schedule(self, batch: Batch, *, train: bool) -> Tensor:
        schedule = self._schedule(len(batch.sample_ids) // self._shape.micro_batch_size)
        run: Callable[..., object] = schedule.step if train else schedule.eval
        losses: list[Tensor] = []
        args = (batch.tokens,) if self._is_first else ()
        inputs = self._inputs(batch)
        if self._is_last:
            run(*args, target=batch.loss_mask, losses=losses, **inputs)
        else:
            run(*args, **inputs)
        if not losses:
            return torch.zeros((), device=self._context.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _loss(self, token_losses: Tensor, mask: Tensor) -> Tensor:
        return (token_losses * mask).sum() * self._loss_factor

    def _schedule(self, num_micro_batches: int) -> _PipelineSchedule:
        """Give the schedule for a number of micro-batches, which --rampup-batch-size changes."""
        if num_micro_batches not in self._schedules:
            stages: list[_PipelineStageBase] = [
                self._make_stage(stage, module)
                for stage, module in zip(self._stages, self._modules, strict=True)
            ]
            # The loss carries its divisor, so that no schedule may scale gradients.
            if len(stages) == 1:
                self._schedules[num_micro_batches] = Schedule1F1B(
                    stages[0], num_micro_batches, loss_fn=self._loss, scale_grads=False
                )
            else:
                self._schedules[num_micro_batches] = ScheduleInterleaved1F1B(
                    stages, num_micro_batches, loss_fn=self._loss, scale_grads=False
                )
        return self._schedules[num_micro_batches]

    def _make_stage(self, stage: StageLayers, module: nn.Module) -> PipelineStage:
        """Wrap a stage with its boundary shapes stated, so that no trial forward has to find them."""
        shape = self._shape
        tokens = (shape.micro_batch_size, shape.seq_length)
        hidden = torch.empty(shape.hidden, dtype=shape.dtype, device="meta")
        first = torch.empty(tokens, dtype=torch.int64, device="meta")
        losses = torch.empty(tokens, dtype=torch.float32, device="meta")
        return PipelineStage(
            module,
            stage.index,
            stage.num_stages,
            self._context.device,
            input_args=first if stage.is_first else hidden.requires_grad_(),
            output_args=losses.requires_grad_() if stage.is_last else hidden.requires_grad_(),
            group=self._context.pp_group,
        )


class TiedEmbedding:
    """The embedding that the first and the last stage each hold a copy of: one weight, two gradients."""

    def __init__(self, context: ParallelContext) -> None:
        """Make the group of each first and last stage. Collective over the world."""
        ranks = context.mesh.mesh
        ends = torch.stack([ranks[0], ranks[-1]], dim=-1).reshape(-1, 2).tolist()
        self._group, _ = dist.new_subgroups_by_enumeration(ends, timeout=context.timeout)
        self._is_end = context.pp_rank in (0, context.pp_size - 1)

    def sum_gradients(self, weight: nn.Parameter) -> None:
        """Add the two copies' gradients in place. Collective over {first, last} stage; only they call it."""
        assert self._is_end
        assert isinstance(weight.grad, DTensor)
        dist.all_reduce(weight.grad.to_local(), group=self._group)
