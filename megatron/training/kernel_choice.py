"""Which operations a run computes its model with, and what adds up its gradients: by its options and its device."""

from __future__ import annotations

import torch

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.kernels.choice import Choice
from megatron.kernels.registry import Kernels
from megatron.model.gpt import choose_model_kernels
from megatron.parallel.pipeline import splits_backward


def choose_run_kernels(config: Config, device: torch.device) -> Kernels:
    """Choose the operations of a run's model. ConfigError if the options ask for what cannot run."""
    return choose_model_kernels(
        config.model,
        device,
        getattr(torch, config.precision.compute_dtype),
        masks_documents=config.data.reset_attention_mask,
        seq_length=config.data.seq_length,
        splits_sequences=config.parallel.context_parallel_size > 1,
        has_fp8=config.precision.fp8_format is not None,
    )


def choose_accumulation(config: Config, device: torch.device) -> Choice:
    """Say who adds up the gradients of micro-batches, and why: the products that make them (fused), or who gets them.

    ConfigError if the products cannot and --gradient-accumulation-fusion asks them to.
    """
    asked = config.precision.gradient_accumulation_fusion
    obstacle = None
    if config.precision.compute_dtype == "float32":
        obstacle = "gradients are in fp32 without --bf16 or --fp16"
    elif splits_backward(config):
        schedule = config.parallel.pipeline_schedule
        obstacle = f"--pipeline-schedule {schedule} computes gradients of weights later than others"
    if asked == "on" and obstacle is not None:
        raise ConfigError(f"--gradient-accumulation-fusion on: {obstacle}; leave it to auto")
    if asked == "auto" and obstacle is None and device.type == "cpu":
        obstacle = "faster on cpu"
    if asked == "auto" and obstacle is None and config.model.recompute_granularity == "full":
        # a product saves its input when it is done; torch's own is left out where recomputation has come to its input
        obstacle = "--recompute-granularity full would run a product a layer more"
    if asked == "off" or obstacle is not None:
        return Choice("gradient sums", "separate", obstacle or "asked for")
    reason = "products of the layers add to fp32, nothing is rounded"
    return Choice("gradient sums", "fused", reason)
