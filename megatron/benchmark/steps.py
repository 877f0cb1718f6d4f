"""Steps of a real run, timed: its own loader and `train_step`, without logs, validation and checkpoints.

Steps that are timed as a whole carry one mark each. How their time divides is measured on other steps, whose passes are
marked too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from megatron.parallel.pipeline import Batch, Pipeline
from megatron.timeline import Timeline
from megatron.training.run import Run
from megatron.training.step import PendingStep, StepParts, StepResult, train_step


@dataclass(frozen=True)
class TimedSteps:
    """What some steps took, and what came of them."""

    seconds: list[float]  # from the end of one step to the end of the next
    loader_seconds: list[float]  # in which the host waited for the batch
    losses: list[float]
    attention_share: float  # mean, as in `StepResult`


def take_step(run: Run, parts: StepParts | None = None) -> tuple[PendingStep, float]:
    """Queue the next step of a run; give it, and the seconds that the host waited for its batch."""
    size = run.batches.size(run.progress.consumed_samples)
    consumed = run.progress.consumed_samples
    start = time.perf_counter()
    batch = run.loader.batch(consumed, size)
    waited = time.perf_counter() - start
    step = train_step(
        parts or run.parts,
        batch,
        consumed_samples=consumed,
        global_batch_size=size,
    )
    run.progress.advance(size)
    return step, waited


def time_steps(run: Run, num_steps: int) -> TimedSteps:
    """Take steps and time each; as in training, one step's result is read once the next is queued. Collective."""
    timeline = Timeline(run.parts.context.device)
    steps: list[PendingStep] = []
    results: list[StepResult] = []
    waits: list[float] = []
    timeline.mark("start")
    for _ in range(num_steps):
        step, waited = take_step(run)
        timeline.mark("step")
        results += [earlier.read() for earlier in steps[-1:]]
        steps.append(step)
        waits.append(waited)
    results += [last.read() for last in steps[-1:]]
    seconds = [seconds for _, seconds in timeline.laps()]
    shares = [result.attention_share for result in results]
    return TimedSteps(
        seconds, waits, [result.loss for result in results], sum(shares) / max(1, len(shares))
    )


PARTS = ("data", "forward", "backward", "optimizer", "rest")


def time_parts(run: Run, num_steps: int) -> dict[str, float]:
    """Give the seconds of a mean step by part. Collective over the world.

    data: from the end of the last step until the batch is on the device; what the loader or the host hides
    behind the device's work is not in it. backward: with the reduction of gradients over data parallel
    processes. optimizer: the norm of the gradient, the reduction of a step's numbers, clipping, AdamW, the next
    step's weights where they are cast at once. Where a pipeline mixes forward and backward they are one part.
    """
    timeline = Timeline(run.parts.context.device)
    pipeline = cast(Pipeline, _MarkedPipeline(run.parts.pipeline, timeline))
    parts = dataclasses.replace(run.parts, pipeline=pipeline)
    with _marked_forwards(run.parts, timeline):
        timeline.mark("start")
        for _ in range(num_steps):
            take_step(run, parts)
            timeline.mark("optimizer")
    return {name: seconds / num_steps for name, seconds in timeline.totals().items()}


class _MarkedPipeline:
    """A pipeline that marks where its passes begin and end."""

    def __init__(self, pipeline: Pipeline, timeline: Timeline) -> None:
        self._pipeline = pipeline
        self._timeline = timeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def forward_backward(self, batch: Batch, loss_factor: float | Tensor) -> Tensor:
        self._timeline.mark("data")
        loss = self._pipeline.forward_backward(batch, cast(float, loss_factor))
        is_plain = self._timeline.last in ("forward", "backward")
        self._timeline.mark("backward" if is_plain else "forward and backward")
        return loss


@contextmanager
def _marked_forwards(parts: StepParts, timeline: Timeline) -> Iterator[None]:
    """Mark the ends of forward and of backward passes where they follow each other, micro-batch by micro-batch."""

    def before(*_: object) -> None:
        timeline.mark("backward" if timeline.last == "forward" else "rest")

    def after(*_: object) -> None:
        timeline.mark("forward")

    handles: list[torch.utils.hooks.RemovableHandle] = []
    if parts.context.pp_size == 1:
        for module in parts.pipeline.modules:
            # before fully_shard's own hook, which casts and gathers the weights
            handles.append(module.register_forward_pre_hook(before, prepend=True))
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
