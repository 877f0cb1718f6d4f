"""The kernels that a run on some hardware would choose, as they can be counted on the meta device.

Our CUDA kernels are operators with shapes of their own: each is one operation there, which reads its inputs and
writes its outputs once. What torch compiles, and what is fused for CPUs, has no such form and moves and keeps the same:
ours stand in for it. For attention and products in 8 bits that only a GPU has, `attention.fused_attention` and
`eight_bit.eight_bit_product` do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from megatron.config import Config
from megatron.kernels import cross_entropy
from megatron.kernels.bias_dropout_residual import (
    fused_bias_dropout_residual,
    fused_bias_dropout_residual_layer_norm,
)
from megatron.kernels.bias_gelu import fused_bias_gelu
from megatron.kernels.choice import Situation
from megatron.kernels.fp8_product import fp8_product
from megatron.kernels.layer_norm import fused_layer_norm
from megatron.kernels.linear_product import linear_product
from megatron.kernels.onednn_product import onednn_product
from megatron.kernels.registry import Kernels, choose_kernels
from megatron.parallel.pipeline import splits_backward
from megatron.planning.attention import fused_attention
from megatron.planning.eight_bit import eight_bit_product
from megatron.planning.hardware import Hardware

KEEPS_SCORES = ("explicit", "blocked")  # in memory or in the cache: they run on the meta device
IN_ONE_PASS = {
    "layer_norm": fused_layer_norm,
    "bias_gelu": fused_bias_gelu,
    "bias_dropout_residual": fused_bias_dropout_residual,
    "bias_dropout_residual_layer_norm": fused_bias_dropout_residual_layer_norm,
    "cross_entropy": cross_entropy.FUSED,
}


def choose_planned_kernels(config: Config, hardware: Hardware) -> Kernels:
    """Choose as a run on this hardware does, with csrc/ built, and give what can be counted. ConfigError alike."""
    model, parallel = config.model, config.parallel
    situation = Situation(
        hardware.device_type,
        getattr(torch, config.precision.compute_dtype),
        model.head_dim,
        attention_dropout=model.attention_dropout,
        masks_documents=config.data.reset_attention_mask,
        has_window=model.window_within(config.data.seq_length) is not None,
        capability=hardware.capability,
        splits_sequences=parallel.context_parallel_size > 1,
        keeps_order=model.deterministic_mode,
        has_fp8=config.precision.fp8_format is not None,
    )
    return countable(choose_kernels(model.attention_backend, situation, model.kernels))


def countable(kernels: Kernels) -> Kernels:
    """Put what runs on the meta device in the place of what does not."""
    changes: dict[str, Any] = {
        choice.operation: IN_ONE_PASS[choice.operation]
        for choice in kernels.choices
        if choice.name in ("compiled", "fused") and choice.operation in IN_ONE_PASS
    }
    if attention_of(kernels) not in KEEPS_SCORES:
        changes["attention"] = fused_attention
    if kernels.product is fp8_product:
        changes["product"] = eight_bit_product
    if kernels.product is onednn_product:
        changes["product"] = changes["output_product"] = linear_product
    return replace(kernels, **changes)


def attention_of(kernels: Kernels) -> str:
    """Name the attention that was chosen."""
    return next(choice.name for choice in kernels.choices if choice.operation == "attention")


def sums_gradients(config: Config, hardware: Hardware, num_micro_batches: int) -> bool:
    """Whether products add weights' gradients to sums over micro-batches, as a run would choose."""
    asked = config.precision.gradient_accumulation_fusion
    is_fp32 = config.precision.compute_dtype == "float32"
    if num_micro_batches == 1 or is_fp32 or splits_backward(config):
        return False
    is_faster = hardware.device_type == "cuda" and config.model.recompute_granularity != "full"
    return asked == "on" or (asked == "auto" and is_faster)
