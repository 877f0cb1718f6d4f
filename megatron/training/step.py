"""One optimizer step: gradients of the batch, one small reduction over the world, the update.

Knows nothing of logs, checkpoints or the length of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on every process."""

    loss: float  # mean over the tokens that carry loss, nats
    gradient_norm: float  # before clipping
    learning_rate: float
    is_skipped: bool  # gradients were not finite, or no token carried loss: weights are as before
    is_lost: bool  # skipped, and no lower loss scale can help
    should_stop: bool  # some process was asked to
    attention_share: (
        float  # pairs attended over those that whole samples would have; 1 without document masks
    )


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


def train_step(
    parts: StepParts,
    batch: Batch,
    *,
    consumed_samples: int,
    global_batch_size: int,
    wants_stop: bool,
) -> StepResult:
    """Update the weights with one global batch. Collective over the world; synchronises the device once.

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
    num_tokens, total_loss, total_square, num_stops, num_pairs = _reduce(
        parts, batch, loss_sum, square_sum, wants_stop
    )
    learning_rate = parts.schedule.learning_rate(consumed_samples)
    correction = num_positions / num_tokens / scale if num_tokens else math.nan
    norm = math.sqrt(total_square) * correction
    loss = total_loss / num_tokens if num_tokens else math.nan
    is_skipped = not (math.isfinite(norm) and math.isfinite(loss))
    if is_skipped:
        parts.optimizer.zero_grad()
    else:
        parts.optimizer.step(
            learning_rate=learning_rate,
            weight_decay=parts.schedule.weight_decay(consumed_samples),
            gradient_factor=torch.tensor(
                correction * clip_factor(norm, parts.clip_grad), device=parts.context.device
            ),
        )
        if parts.tied_embedding is not None:
            parts.tied_embedding.copy_weight()
    is_lost = is_skipped and num_tokens > 0 and parts.loss_scale.is_lowest
    if num_tokens > 0:
        parts.loss_scale.update(found_overflow=is_skipped)
    attention_share = 1.0
    if batch.document_starts is not None:
        whole = attended_pairs(parts.seq_length, parts.window_size)
        attention_share = num_pairs / (global_batch_size * whole)
    return StepResult(
        loss, norm, learning_rate, is_skipped, is_lost, num_stops > 0, attention_share
    )


def _pairs_in_documents(starts: Tensor | None, positions: Tensor, window: int | None) -> int:
    """Sum `attended_pairs` of the tokens of all documents: starts int64 [B, s'], positions [s'], on the CPU."""
    if starts is None:
        return 0
    distances = positions - starts
    if window is not None:
        distances.clamp_(max=window - 1)
    return int((2 * distances + 1).sum())


def _reduce(
    parts: StepParts, batch: Batch, loss_sum: Tensor, square_sum: Tensor, wants_stop: bool
) -> list[float]:
    """Sum (tokens with loss, loss, squared gradient norm, stop requests, attended pairs) over the world.

    Collective. The last stage's tensor parallel processes all know the same loss and tokens: each gives its part.
    """
    context = parts.context
    num_tokens, num_pairs = batch.loss_mask.sum(dtype=torch.float64), 0
    if not parts.pipeline.has_last_stage:
        num_tokens = torch.zeros_like(num_tokens)
    else:
        num_pairs = _pairs_in_documents(batch.document_starts, parts.positions, parts.window_size)
    device_sums = [num_tokens / context.tp_size, loss_sum.double() / context.tp_size, square_sum]
    host_sums = torch.tensor([float(wants_stop), num_pairs / context.tp_size], dtype=torch.float64)
    stats = torch.cat([torch.stack(device_sums), host_sums.to(context.device)])
    dist.all_reduce(stats)
    values: list[float] = stats.tolist()
    return values
