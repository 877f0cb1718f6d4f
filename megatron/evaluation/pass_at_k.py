"""The probability that one of k samples is right, from n samples of each task. Knows nothing of how they were judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron.errors import ConfigError

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Give 1 - C(n - c, k) / C(n, k), without bias for any n >= k (Codex paper §2.1). Raises ConfigError for n < k."""
    if not 1 <= k <= num_samples:
        raise ConfigError(
            f"pass@{k} of {num_samples} samples; allowed: k from 1 to the samples of each task"
        )
    if num_samples - num_correct < k:
        return 1.0
    terms = np.arange(num_samples - num_correct + 1, num_samples + 1)
    return float(1.0 - np.prod(1.0 - k / terms))


def estimate(counts: Sequence[tuple[int, int]], k: int) -> Estimate:
    """Give pass@k over tasks, each (samples, correct), with a bootstrap interval over the tasks."""
    values = np.array(
        [pass_at_k(num_samples, num_correct, k) for num_samples, num_correct in counts]
    )
    draws = np.random.default_rng([0, k]).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))
