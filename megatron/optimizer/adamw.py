"""AdamW on the shards of this process: fp32 master weights and moments, named like the parameters.

Knows nothing of schedules (rates are arguments of a step) nor of processes: a shard is updated where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megatron.options import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """torch's fused AdamW over named parameters; matrices decay, biases and norms do not."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        """Allocate the moments at once, so that a checkpoint can be read into them."""
        self._parameters = dict(parameters)
        self._config = config
        self._moments = {
            moment: {name: torch.zeros_like(p.detach()) for name, p in self._parameters.items()}
            for moment in MOMENTS
        }
        device = next(iter(self._parameters.values())).device
        # fp32 as torch's kernels want it: exact up to 2^24 steps
        self._num_steps = torch.zeros((), dtype=torch.float32, device=device)

    @torch.no_grad()
    def step(self, *, learning_rate: float, weight_decay: float, gradient_factor: Tensor) -> None:
        """Update every parameter with gradient_factor x its gradient, then drop the gradients.

        gradient_factor: fp32 [] on the parameters' device, which alone reads it: nothing waits for the device. If it
        is not finite, weights, moments and the number of steps stay bitwise as they are.
        """
        is_finite = gradient_factor.isfinite().float()
        self._num_steps.add_(is_finite)
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        torch._foreach_mul_([_local(self._parameters[n].grad) for n in names], gradient_factor)
        matrices = [name for name in names if self._parameters[name].ndim >= 2]
        others = [name for name in names if self._parameters[name].ndim < 2]
        for group, decay in ((matrices, weight_decay), (others, 0.0)):
            torch._fused_adamw_(
                [_local(self._parameters[name]) for name in group],
                [_local(self._parameters[name].grad) for name in group],
                *([_local(self._moments[moment][name]) for name in group] for moment in MOMENTS),
                [],
                [self._num_steps] * len(group),
                lr=learning_rate,
                beta1=self._config.adam_beta1,
                beta2=self._config.adam_beta2,
                weight_decay=decay,
                eps=self._config.adam_eps,
                amsgrad=False,
                maximize=False,
                found_inf=1.0 - is_finite,
            )
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


def _local(tensor: Tensor | None) -> Tensor:
    """Give this process's part of a parameter, a gradient or a moment."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
