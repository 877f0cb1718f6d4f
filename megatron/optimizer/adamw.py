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
        decayed = [p for p in self._parameters.values() if p.ndim >= 2]
        others = [p for p in self._parameters.values() if p.ndim < 2]
        assert config.lr is not None
        self._optimizer = torch.optim.AdamW(
            [
                {"params": group, "weight_decay": decay}
                for group, decay in ((decayed, config.weight_decay), (others, 0.0))
                if group
            ],
            lr=config.lr,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_eps,
            fused=True,
        )
        for parameter in self._parameters.values():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{moment: torch.zeros_like(parameter) for moment in MOMENTS},
            }

    def step(self, *, learning_rate: float, weight_decay: float, gradient_factor: float) -> None:
        """Update every parameter with gradient_factor x its gradient, then drop the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = weight_decay if group["params"][0].ndim >= 2 else 0.0
        if gradient_factor != 1.0:
            gradients = [
                p.grad.to_local() for p in self._parameters.values() if isinstance(p.grad, DTensor)
            ]
            torch._foreach_mul_(gradients, gradient_factor)
        self._optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def num_steps(self) -> int:
        """Updates made so far, which Adam's bias correction counts."""
        first = next(iter(self._parameters.values()))
        return int(self._optimizer.state[first]["step"])

    @num_steps.setter
    def num_steps(self, count: int) -> None:
        for parameter in self._parameters.values():
            self._optimizer.state[parameter]["step"].fill_(count)

    def tensors(self) -> dict[str, Tensor]:
        """Name the moments as a checkpoint does: optimizer.exp_avg.PARAMETER, optimizer.exp_avg_sq.PARAMETER."""
        return {
            f"optimizer.{moment}.{name}": self._optimizer.state[parameter][moment]
            for name, parameter in self._parameters.items()
            for moment in MOMENTS
        }
