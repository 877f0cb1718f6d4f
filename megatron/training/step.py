"""One optimizer step: gradients of the batch, one small reduction over the world, the update.

The host queues all of it and reads nothing: what depends on the reduction is computed where it arrives. Its numbers are
there for who asks later (`PendingStep`). Knows nothing of logs, checkpoints or the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.model.flops import attended_pairs
from megatron.optimizer.adamw import AdamW
from megatron.optimizer.clip import clip_factor, gradient_square_sum
from megatron.optimizer.loss_scale import LossScale
from megatron.optimizer.schedule import Schedule
from megatron.parallel.context import ParallelContext
from megatron.parallel.pipeline import Batch, Pipeline, TiedEmbedding
from megatron.training.spike import NO_LIMITS, SpikeLimits
from megatron.training.votes import NO_VOTES, Votes
from megatron.transfer import HostCopy


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on every process."""

    loss: float  # mean over the tokens that carry loss, nats
    gradient_norm: float  # before clipping
    learning_rate: float
    is_skipped: bool  # not finite, above a limit, or no token carried loss: weights are as before
    is_lost: bool  # skipped, and no lower loss scale can help
    next_loss_scale: float
    votes: Votes  # summed over the processes
    # pairs attended over those that whole samples would have; 1 without document masks
    attention_share: float
    limits: SpikeLimits = NO_LIMITS
    num_loss_tokens: int = 0  # of the global batch, that carried loss

    @property
    def is_spike(self) -> bool:
        """Say that the step was skipped for being above a limit."""
        return self.is_skipped and math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class StepParts:
    """What a step works on."""

    context: ParallelContext
    pipeline: Pipeline
    optimizer: AdamW
    schedule: Schedule
    loss_scale: LossScale
    parameters: list[nn.Parameter]  # each logical weight once over the pipeline
    tied_embedding: TiedEmbedding | None  # of a pipeline whose ends share it
    seq_length: int
    positions: Tensor  # int64 [s'] on the CPU, of a sample, that this process holds
    window_size: int | None
    clip_grad: float


class PendingStep:
    """A step that the device may still be busy with."""

    def __init__(
        self,
        numbers: HostCopy,
        loss_scale: LossScale,
        *,
        learning_rate: float,
        num_whole_pairs: int | None,
        limits: SpikeLimits,
    ) -> None:
        """num_whole_pairs: `attended_pairs` of the batch's samples, each as one document; None: each is one."""
        self._numbers = numbers
        self._loss_scale = loss_scale
        self._learning_rate = learning_rate
        self._num_whole_pairs = num_whole_pairs
        self._limits = limits
        self._result: StepResult | None = None

    def read(self) -> StepResult:
        """Say what the step did. Waits for the device to finish it, but for nothing that was queued after it."""
        if self._result is None:
            self._result = self._receive()
        return self._result

    def _receive(self) -> StepResult:
        loss, norm, factor, num_tokens, num_pairs, *votes = self._numbers.wait().tolist()
        is_skipped = not math.isfinite(factor)
        is_overflow = is_skipped and not (math.isfinite(loss) and math.isfinite(norm))
        is_lost = is_skipped and num_tokens > 0
        if is_overflow and not self._loss_scale.is_lowest:
            is_lost = False
        if num_tokens > 0:
            self._loss_scale.update(found_overflow=is_overflow)
        return StepResult(
            loss,
            norm,
            self._learning_rate,
            is_skipped=is_skipped,
            is_lost=is_lost,
            next_loss_scale=self._loss_scale.scale,
            votes=Votes(*map(int, votes)),
            attention_share=num_pairs / self._num_whole_pairs if self._num_whole_pairs else 1.0,
            limits=self._limits,
            num_loss_tokens=int(num_tokens) if math.isfinite(num_tokens) else 0,
        )


def train_step(
    parts: StepParts,
    batch: Batch,
    *,
    consumed_samples: int,
    global_batch_size: int,
    votes: Votes = NO_VOTES,
    limits: SpikeLimits = NO_LIMITS,
) -> PendingStep:
    """Update the weights with one global batch. Collective over the world.

    Synchronises the device only with a dynamic loss scale (fp16), on whose outcome the next step's scale depends;
    otherwise `read` does. A step whose loss or gradients are not finite, or above limits, leaves everything as it was.

    The loss is the mean over all tokens of the global batch that carry loss, whatever their number on each process:
    gradients are first scaled by the number of positions, which every process knows, then corrected by the number of
    tokens that carry loss, which arrives with the gradient norm.
    """
    num_positions = global_batch_size * parts.seq_length
    scale = parts.loss_scale.scale
    loss_sum = parts.pipeline.forward_backward(batch, scale / num_positions)
    if parts.tied_embedding is not None:
        parts.tied_embedding.sum_gradients()
    square_sum = gradient_square_sum(parts.parameters, parts.context.device)
    num_tokens, total_loss, total_square, num_pairs, *all_votes = _reduce(
        parts, batch, loss_sum, square_sum, votes
    )
    # fp64, and tensors throughout: a quotient with a Python number is a product with its rounded reciprocal
    correction = torch.full_like(num_tokens, num_positions) / num_tokens
    correction = correction / torch.full_like(correction, scale)
    norm = total_square.sqrt() * correction
    loss = total_loss / num_tokens
    factor = correction * clip_factor(norm, parts.clip_grad)
    # no token with loss makes 0 / 0
    is_sound = norm.isfinite() & loss.isfinite()
    if limits != NO_LIMITS:
        is_sound &= (loss <= limits.loss) & (norm <= limits.gradient_norm)
    factor = factor.where(is_sound, math.nan).float()
    learning_rate = parts.schedule.learning_rate(consumed_samples)
    parts.optimizer.step(
        learning_rate=learning_rate,
        weight_decay=parts.schedule.weight_decay(consumed_samples),
        gradient_factor=factor,
    )
    if parts.tied_embedding is not None:
        parts.tied_embedding.copy_weight()
    numbers = torch.stack([loss, norm, factor.double(), num_tokens, num_pairs, *all_votes])
    num_whole_pairs = None
    if batch.document_starts is not None:
        num_whole_pairs = global_batch_size * attended_pairs(parts.seq_length, parts.window_size)
    step = PendingStep(
        HostCopy(numbers),  # behind the update: who has read it knows that the step is over
        parts.loss_scale,
        learning_rate=learning_rate,
        num_whole_pairs=num_whole_pairs,
        limits=limits,
    )
    if parts.loss_scale.is_dynamic:
        step.read()
    return step


def _pairs_in_documents(starts: Tensor | None, positions: Tensor, window: int | None) -> int:
    """Sum `attended_pairs` of the tokens of all documents: starts int64 [B, s'], positions [s'], on the CPU."""
    if starts is None:
        return 0
    distances = positions - starts
    if window is not None:
        distances.clamp_(max=window - 1)
    return int((2 * distances + 1).sum())


def _reduce(
    parts: StepParts, batch: Batch, loss_sum: Tensor, square_sum: Tensor, votes: Votes
) -> tuple[Tensor, ...]:
    """Sum (tokens with loss, loss, squared gradient norm, attended pairs, *votes) over the world: fp64 [] each.

    Collective. The last stage's tensor parallel processes all know the same loss and tokens: each gives its part.
    """
    tp_size = parts.context.tp_size
    num_tokens, num_pairs = batch.loss_mask.sum(dtype=torch.float64), 0
    if not parts.pipeline.has_last_stage:
        num_tokens = torch.zeros_like(num_tokens)
    else:
        num_pairs = _pairs_in_documents(batch.document_starts, parts.positions, parts.window_size)
    # a fill takes its number along, where a copy from the host would wait for the device
    host_sums = [torch.full_like(num_tokens, x) for x in (num_pairs / tp_size, *astuple(votes))]
    stats = torch.stack([num_tokens / tp_size, loss_sum.double() / tp_size, square_sum, *host_sums])
    dist.all_reduce(stats)
    return stats.unbind()
