"""One step of AdamW (arXiv 1711.05101) on many tensors: torch's fused kernel, and one that is faster on a GPU.

Weights and gradients are fp32, moments fp32 or bf16; arithmetic is in fp32, and what is stored is rounded to nearest.
The factor of the gradients and the number of steps lie on the device: where the factor is not finite, both ways leave
weights, moments and the number of steps bitwise as they are. Knows nothing of parameters and processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_double
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron.kernels.cuda_library import dtype_code, launch
from megatron.kernels.multi_tensor import Table

# Elements whose moments are in fp32 at once: scratch that stays in a CPU's caches; a GPU wants few launches.
_CPU_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 26


@dataclass(frozen=True)
class Shards:
    """Equally long lists of tensors: what one step reads and writes."""

    weights: list[Tensor]
    gradients: list[Tensor]  # of no use after a step
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    weight_decays: list[float]

    @property
    def lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        return self.weights, self.gradients, self.exp_avgs, self.exp_avg_sqs

    def decaying_by(self, weight_decay: float) -> Shards:
        """Give those with this weight decay."""
        here = [i for i, decay in enumerate(self.weight_decays) if decay == weight_decay]
        weights, gradients, exp_avgs, exp_avg_sqs = (
            [tensors[i] for i in here] for tensors in self.lists
        )
        return Shards(weights, gradients, exp_avgs, exp_avg_sqs, [weight_decay] * len(here))

    def in_chunks(self, num_elements: int) -> Iterator[Shards]:
        """Give views of at most that many elements, one after another."""
        for *tensors, decay in zip(*self.lists, self.weight_decays, strict=True):
            chunks = [tensor.view(-1).split(num_elements) for tensor in tensors]
            for weight, gradient, exp_avg, exp_avg_sq in zip(*chunks, strict=True):
                yield Shards([weight], [gradient], [exp_avg], [exp_avg_sq], [decay])


@dataclass(frozen=True)
class Rates:
    """The numbers of one step."""

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float


def adamw_(shards: Shards, rates: Rates, factor: Tensor, num_steps: Tensor) -> None:
    """Update in place with factor x gradients, by torch's fused kernel; scales the gradients too.

    factor and num_steps fp32 [] on the device of the shards; num_steps counts this step.
    """
    is_finite = factor.isfinite().float()
    num_steps.add_(is_finite)
    torch._foreach_mul_(shards.gradients, factor)
    for decay in sorted(set(shards.weight_decays)):
        group = shards.decaying_by(decay)
        if all(moment.dtype == torch.float32 for moment in group.exp_avgs + group.exp_avg_sqs):
            _torch_adamw_(group, rates, num_steps, 1.0 - is_finite)
            continue
        chunk = _CPU_CHUNK if factor.device.type == "cpu" else _GPU_CHUNK
        for part in group.in_chunks(chunk):
            scratch = replace(
                part,
                exp_avgs=[x.float() for x in part.exp_avgs],
                exp_avg_sqs=[x.float() for x in part.exp_avg_sqs],
            )
            _torch_adamw_(scratch, rates, num_steps, 1.0 - is_finite)
            torch._foreach_copy_(part.exp_avgs, scratch.exp_avgs)
            torch._foreach_copy_(part.exp_avg_sqs, scratch.exp_avg_sqs)


def _torch_adamw_(shards: Shards, rates: Rates, num_steps: Tensor, is_skipped: Tensor) -> None:
    """Call torch's kernel on shards that decay alike, with fp32 moments."""
    torch._fused_adamw_(
        *shards.lists,
        [],
        [num_steps] * len(shards.weights),
        lr=rates.learning_rate,
        beta1=rates.beta1,
        beta2=rates.beta2,
        weight_decay=shards.weight_decays[0],
        eps=rates.epsilon,
        amsgrad=False,
        maximize=False,
        found_inf=is_skipped,
    )


def fused_adamw_(shards: Shards, rates: Rates, factor: Tensor, num_steps: Tensor) -> None:
    """Update in place with factor x gradients, in one launch that only reads the gradients (csrc/adamw.cu).

    On a GPU; arguments as `adamw_`. All first moments have one dtype, and so have all second ones.
    """
    lr = rates.learning_rate
    table = Table.upload(shards.lists, [lr * decay for decay in shards.weight_decays])
    dtypes = [{x.dtype for x in tensors} for tensors in shards.lists]
    assert all(len(found) == 1 for found in dtypes)
    (weight_dtype,), (gradient_dtype,), (exp_avg_dtype,), (exp_avg_sq_dtype,) = dtypes
    assert weight_dtype == gradient_dtype == torch.float32
    launch(
        "adamw",
        *table.arguments,
        factor.new_empty(4),
        num_steps,
        factor,
        c_double(lr),
        c_double(rates.beta1),
        c_double(rates.beta2),
        c_double(rates.epsilon),
        dtype_code(exp_avg_dtype),
        dtype_code(exp_avg_sq_dtype),
    )
