"""When a step is a spike: its loss, or its gradient norm, lies far above those of the steps before it.

The limit of a value x over a window of earlier steps is

    median(x) + threshold * max(1.4826 * median(|x - median(x)|), 0.001)

where x is the loss in nats or the logarithm of the gradient norm, whose values spread like those of a product, and
1.4826 makes the median deviation a standard deviation where values are normally distributed (Rousseeuw and Croux, JASA
88, 1993). OLMo-core's SkipStepOptimizer does the same with 6 standard deviations above the mean of 128 steps; medians,
because a spike in the window must not raise the limit for the next one. Knows nothing of how steps are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from megatron.options import TrainingConfig

LAG = 2  # the limit of step N is known from steps up to N - 2, whose results are read before N is queued

_NORMAL = 1.4826
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class SpikeLimits:
    """The highest values of a step that may change the weights."""

    loss: float = math.inf
    gradient_norm: float = math.inf


NO_LIMITS = SpikeLimits()


@dataclass(frozen=True)
class Streak:
    """Steps that were lost one after another."""

    first_step: int
    first_sample: int


@dataclass
class SpikeHistory:
    """What recent steps were like. Saved with a checkpoint, so that a resumed run knows the same limits."""

    # [iteration, loss, gradient norm]
    steps: list[list[float]] = field(default_factory=list)
    # [iteration, first sample], weights unchanged
    lost: list[list[int]] = field(default_factory=list)


class SpikeGuard:
    """Gives the limits of each step from the results of earlier ones."""

    def __init__(self, config: TrainingConfig, history: SpikeHistory) -> None:
        """Keep history, which grows with every result."""
        self._window, self._threshold = config.loss_spike_window, config.loss_spike_threshold
        self._is_on = config.loss_spike_policy != "none"
        self._patience = config.loss_spike_patience
        self._history = history

    def limits(self, iteration: int) -> SpikeLimits:
        """Give the limits of a step: a function of what came LAG steps before it or earlier, whenever it was read.

        Without limits until half a window of steps is known.
        """
        known = [step for step in self._history.steps if step[0] <= iteration - LAG]
        known = known[-self._window :]
        if not self._is_on or 2 * len(known) < self._window:
            return NO_LIMITS
        logarithms = [math.log(norm) for _, _, norm in known if norm > 0.0]
        return SpikeLimits(
            robust_limit([loss for _, loss, _ in known], self._threshold),
            math.exp(robust_limit(logarithms, self._threshold)) if logarithms else math.inf,
        )

    def add(
        self, iteration: int, loss: float, gradient_norm: float, *, lost_sample: int | None = None
    ) -> None:
        """Take the result of a step, of one that was a spike too: a level that stays becomes the usual one.

        lost_sample: the first of a step that was lost.
        """
        history = self._history
        if self._is_on and math.isfinite(loss) and math.isfinite(gradient_norm):
            history.steps.append([iteration, loss, gradient_norm])
            del history.steps[: -(self._window + LAG - 1)]
        if self._is_on and lost_sample is not None:
            history.lost.append([iteration, lost_sample])
            del history.lost[: -(self._patience + LAG)]

    def streak(self, iteration: int) -> Streak | None:
        """Give the steps lost up to the one before this, when they have just become as many as patience lasts.

        A function of steps before this one alone, as `limits`, whenever its own result is read.
        """
        lost = {entry[0]: entry[1] for entry in self._history.lost}
        first = iteration - self._patience
        if first - 1 in lost or not all(step in lost for step in range(first, iteration)):
            return None
        return Streak(first, lost[first])

    def restore(self, history: SpikeHistory) -> None:
        """Go on from an earlier step's history."""
        self._history.steps, self._history.lost = history.steps, history.lost


def robust_limit(values: list[float], threshold: float) -> float:
    """Give the median plus threshold robust standard deviations."""
    center = median(values)
    deviation = _NORMAL * median(abs(value - center) for value in values)
    return center + threshold * max(deviation, _LEAST_DEVIATION)
