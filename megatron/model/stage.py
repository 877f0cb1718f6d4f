"""A pipeline stage of a run: which of its options the model is made from."""

from __future__ import annotations

from megatron.config import Config
from megatron.kernels.registry import Kernels
from megatron.layer_split import StageLayers
from megatron.model.gpt import GPTModel
from megatron.parallel.context import ParallelContext


def build_stage(
    config: Config, context: ParallelContext, stage: StageLayers, kernels: Kernels
) -> GPTModel:
    """Build a stage with fp32 parameters on the context's device, for training or to be counted. No collective."""
    return GPTModel(
        config.model,
        context,
        layers=stage.layers,
        is_first=stage.is_first,
        is_last=stage.is_last,
        seed=config.training.seed,
        sequence_parallel=config.parallel.sequence_parallel and context.tp_size > 1,
        kernels=kernels,
    )
