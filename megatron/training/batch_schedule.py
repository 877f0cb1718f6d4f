"""How many sequences each step takes: constant, or growing with --rampup-batch-size."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.options import TrainingConfig


@dataclass(frozen=True)
class BatchSchedule:
    """The global batch size as a function of consumed samples (Megatron's rule)."""

    final_size: int
    start_size: int
    increment: int
    samples_per_increment: float

    @classmethod
    def create(cls, config: TrainingConfig, global_batch_size: int) -> BatchSchedule:
        """Read --rampup-batch-size; without it every step has global_batch_size."""
        if config.rampup_batch_size is None:
            return cls(global_batch_size, global_batch_size, 0, 0.0)
        start, increment, samples = config.rampup_batch_size
        num_increments = (global_batch_size - start) // increment
        return cls(
            global_batch_size, start, increment, samples / num_increments if num_increments else 0.0
        )

    def size(self, consumed_samples: int) -> int:
        """Give the size of the step that starts after consumed_samples."""
        if self.samples_per_increment == 0.0:
            return self.final_size
        steps = int(consumed_samples / self.samples_per_increment)
        return min(self.final_size, self.start_size + steps * self.increment)

    def num_steps(self, consumed_samples: int, train_samples: int) -> int:
        """Count the steps of the next one's size that train_samples has left: part of a batch is no step (Megatron's rule)."""
        return max(0, train_samples - consumed_samples) // self.size(consumed_samples)
