"""Learning rate and weight decay as functions of the samples seen. No state moves with the run; what was resolved
from the options is kept with a checkpoint, so that a resume on other options is noticed.

Megatron's rule: everything is counted in samples, warmup is linear from 0, the first step has the rate of sample 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from megatron.option_field import require
from megatron.options import OptimizerConfig, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """Learning rate and weight decay at a number of consumed samples."""

    lr: float
    min_lr: float
    decay_style: str
    warmup_samples: float
    decay_samples: int
    wsd_decay_style: str
    wsd_decay_samples: int
    weight_decay_style: str
    start_weight_decay: float
    end_weight_decay: float
    weight_decay_samples: int  # 0 where it is constant

    @classmethod
    def create(
        cls, config: OptimizerConfig, training: TrainingConfig, global_batch_size: int
    ) -> Schedule:
        """Convert iterations, where given, to samples. ConfigError if warmup or WSD's end is the whole decay."""
        if training.train_samples is not None:
            total = training.train_samples
            decay = _given(config.lr_decay_samples, total)
            wsd = _given(config.lr_wsd_decay_samples, 0)
            warmup: float = config.lr_warmup_samples
        else:
            assert training.train_iters is not None
            total = training.train_iters * global_batch_size
            decay = _given(config.lr_decay_iters, training.train_iters) * global_batch_size
            wsd = _given(config.lr_wsd_decay_iters, 0) * global_batch_size
            warmup = config.lr_warmup_iters * global_batch_size
        if config.lr_warmup_fraction is not None:
            warmup = config.lr_warmup_fraction * decay
        require(
            warmup < decay and wsd <= decay,
            f"the learning rate decays over {decay} samples, with a warmup of {warmup:g} and a last "
            f"part (WSD) of {wsd}; shorten these, or raise --lr-decay-iters (or -samples)",
        )
        assert config.lr is not None
        is_constant = config.weight_decay_incr_style == "constant"
        return cls(
            lr=config.lr,
            min_lr=config.min_lr,
            decay_style=config.lr_decay_style,
            warmup_samples=warmup,
            decay_samples=decay,
            wsd_decay_style=config.lr_wsd_decay_style,
            wsd_decay_samples=wsd,
            weight_decay_style=config.weight_decay_incr_style,
            start_weight_decay=_given(config.start_weight_decay, config.weight_decay),
            end_weight_decay=_given(config.end_weight_decay, config.weight_decay),
            weight_decay_samples=0 if is_constant else total,
        )

    def learning_rate(self, consumed_samples: int) -> float:
        """Learning rate of the step that starts after consumed_samples."""
        if self.warmup_samples > 0 and consumed_samples <= self.warmup_samples:
            return self.lr * consumed_samples / self.warmup_samples
        if self.decay_style == "constant":
            return self.lr
        if consumed_samples > self.decay_samples:
            return self.min_lr
        progress = (consumed_samples - self.warmup_samples) / (
            self.decay_samples - self.warmup_samples
        )
        if self.decay_style == "linear":
            factor = 1.0 - progress
        elif self.decay_style == "cosine":
            factor = 0.5 * (math.cos(math.pi * progress) + 1.0)
        else:
            factor = self._wsd_factor(consumed_samples)
        return self.min_lr + factor * (self.lr - self.min_lr)

    def _wsd_factor(self, consumed_samples: int) -> float:
        """Warmup-stable-decay: 1, then the chosen shape over the last wsd_decay_samples."""
        start = self.decay_samples - self.wsd_decay_samples
        if consumed_samples <= start:
            return 1.0
        progress = (consumed_samples - start) / self.wsd_decay_samples
        if self.wsd_decay_style == "linear":
            return 1.0 - progress
        if self.wsd_decay_style == "cosine":
            return 0.5 * (math.cos(math.pi * progress) + 1.0)
        return 2.0 * 0.5**progress - 1.0

    def weight_decay(self, consumed_samples: int) -> float:
        """Weight decay of the step that starts after consumed_samples."""
        if self.weight_decay_style == "constant":
            return self.start_weight_decay
        progress = min(1.0, consumed_samples / self.weight_decay_samples)
        if self.weight_decay_style == "cosine":
            progress = 0.5 * (math.cos(math.pi * (1.0 - progress)) + 1.0)
        change = self.end_weight_decay - self.start_weight_decay
        return self.start_weight_decay + progress * change


Number = TypeVar("Number", int, float)


def _given(value: Number | None, default: Number) -> Number:
    return default if value is None else value
