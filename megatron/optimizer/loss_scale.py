"""The factor that keeps fp16 gradients above underflow (Megatron's rule). 1 for the other dtypes."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.options import PrecisionConfig


@dataclass
class LossScale:
    """A loss scale that halves after repeated overflow and doubles after a window without."""

    scale: float
    is_dynamic: bool
    minimum: float
    window: int
    hysteresis: int
    good_steps: int = 0
    remaining_hysteresis: int = 0

    @classmethod
    def create(cls, config: PrecisionConfig) -> LossScale:
        """Dynamic for fp16 unless --loss-scale fixes it; constant 1 otherwise."""
        if not config.fp16:
            return cls(1.0, False, 1.0, 0, 0)
        return cls(
            scale=config.initial_loss_scale if config.loss_scale is None else config.loss_scale,
            is_dynamic=config.loss_scale is None,
            minimum=config.min_loss_scale,
            window=config.loss_scale_window,
            hysteresis=config.hysteresis,
            remaining_hysteresis=config.hysteresis,
        )

    @property
    def is_lowest(self) -> bool:
        """Say that the scale will not go down: a fixed one, or a dynamic one at its minimum."""
        return not self.is_dynamic or self.scale <= self.minimum

    def update(self, found_overflow: bool) -> None:
        """Account for one step."""
        if not self.is_dynamic:
            return
        if found_overflow:
            self.good_steps = 0
            self.remaining_hysteresis -= 1
            if self.remaining_hysteresis <= 0:
                self.scale = max(self.scale / 2.0, self.minimum)
            return
        self.good_steps += 1
        if self.good_steps == self.window:
            self.good_steps = 0
            self.remaining_hysteresis = self.hysteresis
            self.scale *= 2.0

    def state(self) -> dict[str, float | int]:
        """Give what a resume needs, as JSON values."""
        return {
            "scale": self.scale,
            "good_steps": self.good_steps,
            "remaining_hysteresis": self.remaining_hysteresis,
        }

    def load_state(self, state: dict[str, float | int]) -> None:
        """Continue from `state()`, unless the scale is fixed."""
        if not self.is_dynamic:
            return
        self.scale = float(state["scale"])
        self.good_steps = int(state["good_steps"])
        self.remaining_hysteresis = int(state["remaining_hysteresis"])
