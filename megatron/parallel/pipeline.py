"""Running micro-batches through the stages: torch's pipeline schedules, or a plain loop without a pipeline.

`Pipeline` is the one adapter between our stages and `torch.distributed.pipelining`. It knows a stage as a module
that takes token ids or hidden states and gives hidden states or, at the end, the loss of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.pipelining.stage import _PipelineStageBase

from megatron.config import Config
from megatron.layer_split import PipelineSchedule, StageLayers
from megatron.parallel.context import ParallelContext
from megatron.parallel.data_parallel import DataParallel
from megatron.parallel.parameter import local_part


class Batch(Protocol):
    """This process's part of a step, micro-batch after micro-batch. B = micro-batches x micro-batch size.

    s are the positions that this process holds: all of a sample, or its share of them (cp).
    """

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
class BoundaryShape:
    """What travels between stages: [s, b, h] (s divided by tp with sequence parallel), and what ends the last one."""

    micro_batch_size: int
    seq_length: int  # positions that a process holds of each sample
    hidden: tuple[int, int, int]
    dtype: torch.dtype


def splits_backward(config: Config) -> bool:
    """Whether a run computes gradients of weights later than those of hidden states.

    Not before torch 2.13, in which the second half may fail: it finds no gradients to begin at. Not where layers are
    recomputed: torch would do that anew for every weight.
    """
    return config.wants_split_backward and torch.__version__ >= "2.13"  # as versions, not as texts


def lost_split(config: Config) -> str | None:
    """Say what a schedule loses by the installed torch; None: nothing."""
    if splits_backward(config) or not config.wants_split_backward:
        return None
    return (
        f"--pipeline-schedule {config.parallel.pipeline_schedule}: torch {torch.__version__} computes both halves of a "
        "backward pass at once, which makes the bubble longer (docs/pipeline.md); 2.13 and later compute them apart"
    )


class Pipeline:
    """The forward and backward passes of a step on this process."""

    def __init__(
        self,
        stages: list[StageLayers],
        modules: list[nn.Module],
        data_parallel: list[DataParallel],
        context: ParallelContext,
        shape: BoundaryShape,
        *,
        schedule: PipelineSchedule,
        splits_backward: bool,
    ) -> None:
        """Take the stages of this process, their modules and what sums the gradients of each. Collective over pp.

        splits_backward: what the function of this name says of the run.
        """
        self._stages = stages
        self._modules = modules
        self._data_parallel = data_parallel
        self._context = context
        self._shape = shape
        self._schedule: PipelineSchedule = schedule
        self._splits_backward = splits_backward
        # for a number of micro-batches, and whether for training
        self._made: tuple[int, bool, _PipelineSchedule] | None = None
        self._loss_factor = 1.0
        self.has_first_stage = stages[0].is_first
        self.has_last_stage = stages[-1].is_last
        if context.pp_size > 1:
            # NCCL makes a group's communicator in its first call, which all of the group have to join; the
            # schedule's first call is between neighbours only.
            dist.all_reduce(torch.zeros(1, device=context.device), group=context.pp_group)

    @property
    def modules(self) -> list[nn.Module]:
        """This process's stages."""
        return self._modules

    def forward_backward(self, batch: Batch, loss_factor: float) -> Tensor:
        """Accumulate the gradients of loss_factor x the sum of the batch's token losses.

        Returns that sum (without the factor) of this process's tokens, fp32 [], where the last stage is and 0 elsewhere;
        it is replicated over tp. Collective over pp, dp, cp and tp: every process calls it once a step.
        """
        self._loss_factor = loss_factor
        for module in self._modules:
            module.train()
        if self._context.pp_size > 1:
            total = self._run_schedule(batch, train=True) / loss_factor
        else:
            total = self._run_micro_batches(batch)
        self._finish()
        return total

    def _finish(self) -> None:
        """Give up what weights were gathered or cast to: the next pass may find other ones."""
        for one in self._data_parallel:
            one.finish()

    def _run_micro_batches(self, batch: Batch) -> Tensor:
        """Do one forward and backward pass after another."""
        total = torch.zeros((), device=self._context.device)
        (module,), (data_parallel,) = self._modules, self._data_parallel
        micro_batches = list(self._split(batch))
        for number, (tokens, mask, inputs) in enumerate(micro_batches, start=1):
            data_parallel.set_gradient_sync(is_last_micro_batch=number == len(micro_batches))
            losses = module(tokens, **inputs)
            loss = (losses * mask).sum()
            (loss * self._loss_factor).backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Sum the token losses without gradients or dropout. Returns and collective as `forward_backward`."""
        for module in self._modules:
            module.eval()
        self._loss_factor = 1.0
        if self._context.pp_size > 1:
            total = self._run_schedule(batch, train=False)
        else:
            total = torch.zeros((), device=self._context.device)
            (module,) = self._modules
            for tokens, mask, inputs in self._split(batch):
                total += (module(tokens, **inputs) * mask).sum()
        self._finish()
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
        if self.has_last_stage:
            inputs["labels"] = batch.labels
        return inputs

    def _run_schedule(self, batch: Batch, *, train: bool) -> Tensor:
        num_micro_batches = len(batch.sample_ids) // self._shape.micro_batch_size
        schedule = self._schedule_of(num_micro_batches, train=train)
        run: Callable[..., object] = schedule.step if train else schedule.eval
        losses: list[Tensor] = []
        args = (batch.tokens,) if self.has_first_stage else ()
        inputs = self._inputs(batch)
        if self.has_last_stage:
            run(*args, target=batch.loss_mask, losses=losses, **inputs)
        else:
            run(*args, **inputs)
        if not losses:
            return torch.zeros((), device=self._context.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _loss(self, token_losses: Tensor, mask: Tensor) -> Tensor:
        return (token_losses * mask).sum() * self._loss_factor

    def _schedule_of(self, num_micro_batches: int, *, train: bool) -> _PipelineSchedule:
        """Give the schedule for a number of micro-batches, which --rampup-batch-size and validation change.

        Only the last one is kept: its stages hold what they received for each micro-batch. One that was first used for
        a validation does not train: in torch 2.11 what it received never asks for a gradient.
        """
        if self._made is not None:
            size, trains, schedule = self._made
            if size == num_micro_batches and (trains or not train):
                return schedule
        self._made = None
        self._made = num_micro_batches, train, self._make_schedule(num_micro_batches)
        return self._made[2]

    def _make_schedule(self, num_micro_batches: int) -> _PipelineSchedule:
        parts = zip(self._stages, self._modules, self._data_parallel, strict=True)
        stages: list[_PipelineStageBase] = [self._make_stage(*part) for part in parts]
        # The loss carries its divisor, so that no schedule may scale gradients.
        options: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        if self._schedule == "1f1b":
            return Schedule1F1B(stages[0], num_micro_batches, **options)
        if self._schedule == "interleaved":
            return ScheduleInterleaved1F1B(stages, num_micro_batches, **options)
        if self._schedule == "zbv":
            return ScheduleZBVZeroBubble(stages, num_micro_batches, **options)
        return ScheduleDualPipeV(stages, num_micro_batches, **options)

    def _make_stage(
        self, stage: StageLayers, module: nn.Module, data_parallel: DataParallel
    ) -> PipelineStage:
        """Wrap a stage with its boundary shapes stated, so that no trial forward has to find them."""
        shape = self._shape
        tokens = (shape.micro_batch_size, shape.seq_length)
        hidden = torch.empty(shape.hidden, dtype=shape.dtype, device="meta")
        first = torch.empty(tokens, dtype=torch.int64, device="meta")
        losses = torch.empty(tokens, dtype=torch.float32, device="meta")
        return _Stage(
            data_parallel,
            module,
            stage.index,
            stage.num_stages,
            self._context.device,
            input_args=first if stage.is_first else hidden.requires_grad_(),
            output_args=losses.requires_grad_() if stage.is_last else hidden.requires_grad_(),
            group=self._context.pp_group,
            dw_builder=None if self._splits_backward else _no_work_left,
        )


class _Stage(PipelineStage):
    """torch's stage, mended where its schedules with two stages on a rank that follow each other need it."""

    def __init__(self, data_parallel: DataParallel, *args: Any, **kwargs: Any) -> None:
        """args, kwargs: torch's."""
        super().__init__(*args, **kwargs)
        self._data_parallel = data_parallel

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        """Meet the ranks of the stages before and after, not this one: gloo cannot, and torch 2.11 asks it to."""
        operations = super()._get_init_p2p_neighbors_ops()
        return [one for one in operations if one.group_peer != self.group_rank]

    def get_local_bwd_output(self, mb_index: int) -> Any:
        """Give the gradients for the stage before, on this rank; none in an evaluation, where torch fails."""
        return super().get_local_bwd_output(mb_index) if self.has_backward else ()

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        """Take the gradients of the stage after, on this rank."""
        if self.has_backward:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Compute the weight gradients of a micro-batch and add them to those of others in fp32."""
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        self._data_parallel.accumulate_in_fp32()


def _no_work_left() -> Callable[[], None]:
    """Give the second half of a backward pass that did all in the first."""
    return lambda: None


class TiedEmbedding:
    """The embedding of which the first and the last stage each hold a copy: one weight, two gradients.

    On two processes each copy is trained, by the same gradient. In one process (stages in a V) the first stage's is,
    and the last stage's follows it.
    """

    def __init__(self, copies: list[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        """Take this process's copies, in the model's order, and the group that another copy is in, if one is."""
        self._copies = copies
        self._group = group

    def sum_gradients(self) -> None:
        """Add the gradients of both copies, in place of the trained one's. Collective over the two that hold them."""
        if not self._copies:
            return
        trained, *followers = self._copies
        assert trained.grad is not None
        total = local_part(trained.grad)
        for follower in followers:
            assert follower.grad is not None
            total.add_(local_part(follower.grad))
            follower.grad = None
        if self._group is not None:
            dist.all_reduce(total, group=self._group)

    @torch.no_grad()
    def copy_weight(self) -> None:
        """Bring a copy that is not trained itself to the value of the one that is."""
        for follower in self._copies[1:]:
            local_part(follower).copy_(local_part(self._copies[0]))
