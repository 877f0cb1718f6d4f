"""Learning rate and weight decay as functions of the samples seen. No state: a resume needs no scheduler.

Megatron's rule: everything is counted in samples, warmup is linear from 0, the first step has the rate of sample 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron.options import OptimizerConfig, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay at a number of consumed samples."""

    config: OptimizerConfig
    warmup_samples: float
    decay_samples: int
    wsd_decay_samples: int
    total_samples: int

    @classmethod
    def create(
        cls, config: OptimizerConfig, training: TrainingConfig, global_batch_size: int
    ) -> Schedule:
        """Convert iterations, where given, to samples."""
        if training.train_samples is not None:
            total = training.train_samples
            decay = config.lr_decay_samples or total
            wsd = config.lr_wsd_decay_samples or 0
            warmup: float = config.lr_warmup_samples
        else:
            assert training.train_iters is not None
            total = training.train_iters * global_batch_size
            decay = (config.lr_decay_iters or training.train_iters) * global_batch_size
            wsd = (config.lr_wsd_decay_iters or 0) * global_batch_size
            warmup = config.lr_warmup_iters * global_batch_size
        if config.lr_warmup_fraction is not None:
            warmup = config.lr_warmup_fraction * decay
        return cls(config, warmup, decay, wsd, total)

    def learning_rate(self, consumed_samples: int) -> float:
        """Learning rate of the step that starts after consumed_samples."""
        config = self.config
        assert config.lr is not None
        if self.warmup_samples > 0 and consumed_samples <= self.warmup_samples:
            return config.lr * consumed_samples / self.warmup_samples
        if config.lr_decay_style == "constant":
            return config.lr
        if consumed_samples > self.decay_samples:
            return config.min_lr
        span = self.decay_samples - self.warmup_samples
        progress = (consumed_samples - self.warmup_samples) / span if span > 0 else 1.0
        if config.lr_decay_style == "linear":
            factor = 1.0 - progress
        elif config.lr_decay_style == "cosine":
            factor = 0.5 * (math.cos(math.pi * progress) + 1.0)
        else:
            factor = self._wsd_factor(consumed_samples)
        return config.min_lr + factor * (config.lr - config.min_lr)

    def _wsd_factor(self, consumed_samples: int) -> float:
        """Warmup-stable-decay: 1, then the chosen shape over the last wsd_decay_samples."""
        start = self.decay_samples - self.wsd_decay_samples
        if consumed_samples <= start:
            return 1.0
        progress = (consumed_samples - start) / self.wsd_decay_samples
        if self.config.lr_wsd_decay_style == "linear":
            return 1.0 - progress
        if self.config.lr_wsd_decay_style == "cosine":
            return 0.5 * (math.cos(math.pi * progress) + 1.0)
        return 2.0 * 0.5**progress - 1.0

    def weight_decay(self, consumed_samples: int) -> float:
        """Weight decay of the step that starts after consumed_samples."""
        config = self.config
        if config.weight_decay_incr_style == "constant":
            return config.weight_decay
        assert config.start_weight_decay is not None and config.end_weight_decay is not None
        progress = min(1.0, consumed_samples / self.total_samples)
        if config.weight_decay_incr_style == "cosine":
            progress = 0.5 * (math.cos(math.pi * (1.0 - progress)) + 1.0)
        change = config.end_weight_decay - config.start_weight_decay
        return config.start_weight_decay + progress * change
