"""Validation: the mean loss of each named set over a fixed number of batches.

Every validation reads the same samples, so that its curve shows the model and not the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron.data.loader import BatchLoader
from megatron.parallel.context import ParallelContext
from megatron.parallel.pipeline import Pipeline


@dataclass(frozen=True)
class Validation:
    """The named sets and how much of each is read."""

    loaders: dict[str, BatchLoader]
    num_batches: int
    global_batch_size: int

    def run(
        self, pipeline: Pipeline, context: ParallelContext, should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Give the mean loss in nats of each set; None, cut short. Collective over the world; synchronises the device.

        should_stop is asked before each batch, and gives the same on every process.
        """
        losses = {}
        for name, loader in self.loaders.items():
            sums = torch.zeros(2, dtype=torch.float64, device=context.device)
            for number in range(self.num_batches):
                if should_stop():
                    return None
                batch = loader.batch(number * self.global_batch_size, self.global_batch_size)
                loss = pipeline.evaluate(batch)
                if pipeline.has_last_stage:
                    sums += torch.stack([loss.double(), batch.loss_mask.sum(dtype=torch.float64)])
            sums /= context.tp_size  # its processes hold equal sums
            dist.all_reduce(sums)
            total, num_tokens = sums.tolist()
            losses[name] = total / num_tokens if num_tokens else float("nan")
        return losses

    def close(self) -> None:
        """End the loaders' processes."""
        for loader in self.loaders.values():
            loader.close()
