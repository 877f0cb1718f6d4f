"""AdamW on the shards of this process: fp32 master weights, moments in fp32 or bf16, named like the parameters.

Knows nothing of schedules (rates are arguments of a step) nor of processes: a shard is updated where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megatron.kernels import cuda_library
from megatron.kernels.adamw import Rates, Shards, adamw_, fused_adamw_
from megatron.options import OptimizerConfig
from megatron.parallel.parameter import local_part

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """AdamW over named parameters; matrices decay, biases and norms do not."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        """Allocate the moments at once, so that a checkpoint can be read into them."""
        self._parameters = dict(parameters)
        self._config = config
        self._moments = {
            moment: {
                name: torch.zeros_like(p.detach(), dtype=getattr(torch, dtype))
                for name, p in self._parameters.items()
            }
            for moment, dtype in zip(MOMENTS, config.moment_dtypes, strict=True)
        }
        device = next(iter(self._parameters.values())).device
        # fp32 as torch's kernels want it: exact up to 2^24 steps
        self._num_steps = torch.zeros((), dtype=torch.float32, device=device)
        self._obstacle = cuda_library.obstacle() if device.type == "cuda" else "not on a GPU"
        self._update = adamw_ if self._obstacle else fused_adamw_

    def describe(self) -> str:
        """Name the way that steps are computed, and say why."""
        moments = f"moments {' and '.join(self._config.moment_dtypes)}"
        if self._obstacle is None:
            return f"csrc/adamw.cu (all shards in one pass; {moments})"
        return f"torch's fused AdamW ({self._obstacle}; {moments})"

    @torch.no_grad()
    def step(self, *, learning_rate: float, weight_decay: float, gradient_factor: Tensor) -> None:
        """Update every parameter with gradient_factor x its gradient, then drop the gradients.

        gradient_factor: fp32 [] on the parameters' device, which alone reads it: nothing waits for the device. If it
        is not finite, weights, moments and the number of steps stay bitwise as they are.
        """
        updated = {name: p for name, p in self._parameters.items() if p.grad is not None}
        exp_avgs, exp_avg_sqs = (self._moments[moment] for moment in MOMENTS)
        shards = Shards(
            [local_part(p) for p in updated.values()],
            [local_part(p.grad) for p in updated.values() if p.grad is not None],
            [local_part(exp_avgs[name]) for name in updated],
            [local_part(exp_avg_sqs[name]) for name in updated],
            [weight_decay if p.ndim >= 2 else 0.0 for p in updated.values()],
        )
        config = self._config
        rates = Rates(learning_rate, config.adam_beta1, config.adam_beta2, config.adam_eps)
        self._update(shards, rates, gradient_factor, self._num_steps)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @property
    def num_steps(self) -> int:
        """Updates made so far, which Adam's bias correction counts. Synchronises the device."""
        return int(self._num_steps)

    @num_steps.setter
    def num_steps(self, count: int) -> None:
        self._num_steps.fill_(count)

    def tensors(self) -> dict[str, Tensor]:
        """Name the moments as a checkpoint does: optimizer.exp_avg.PARAMETER, optimizer.exp_avg_sq.PARAMETER."""
        return {
            f"optimizer.{moment}.{name}": self._moments[moment][name]
            for name in self._parameters
            for moment in MOMENTS
        }
