"""The product with a layer's weight in fp32 by oneDNN, which torch calls for bf16 alone.

torch leaves fp32 to MKL, which on AMD's CPUs does without AVX-512. oneDNN uses it there: measured on one core of an EPYC
(Zen 5), 2.0 to 2.4 x MKL's speed for each of the three products at widths of 256 to 3,072 (docs/kernels.md). Both add up
in fp32. Weights are taken as they lie, for they change each step; `packed_product` is for those that never do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.kernels.linear_product import GradientSum, ProductBy, linear_product

FASTER_THAN_MKL = "AuthenticAMD AVX512"  # as `processor.cpu_kind` names it; no other was measured


def obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Say why oneDNN cannot be called there, or is already; None where it can."""
    if device_type != "cpu":
        return "is for CPUs"
    if dtype != torch.float32:
        return f"is for fp32, and the dtype is {dtype}"
    if not torch.backends.mkldnn.is_available():
        return "needs a torch with oneDNN"
    return None


def is_faster(kind: str) -> bool:
    """Whether it beats torch's own product on such a CPU: by what was measured, so that every run chooses alike."""
    return kind == FASTER_THAN_MKL and torch.backends.mkl.is_available()


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x W^T + bias in any layout: x [r, in], weight [out, in] -> [r, out]."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


def onednn_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gradient_sum: GradientSum | None = None,
) -> Tensor:
    """Compute x W^T + bias as `linear_product` does: x [..., in], weight [out, in], bias [out] -> [..., out].

    Other dtypes than fp32 go to `linear_product`. A backward pass computes both gradients at once: one that asks for
    the input's first computes the weight's twice.
    """
    if x.dtype != torch.float32:
        return linear_product(x, weight, bias, gradient_sum)
    product: Tensor = ProductBy.apply(x, weight, bias, gradient_sum, _multiply)
    return product
