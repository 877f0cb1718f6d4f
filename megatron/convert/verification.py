"""Whether a folder of transformers computes what a checkpoint of ours does: logits of both on the same random tokens, on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron.checkpoint.reader import CheckpointReader
from megatron.convert.source import Source
from megatron.errors import CheckpointError, ConfigError
from megatron.model.gpt import GPTModel
from megatron.options import ModelConfig, ParallelConfig
from megatron.parallel.context import ParallelContext

TOLERANCE = 1e-5  # of fp32 logits, relative to the largest where that is above 1
NUM_SEQUENCES, MAX_LENGTH = 2, 64


def verify_hf(source: Source, folder: Path, dtype: torch.dtype) -> float:
    """Compare a folder of transformers, exported or imported, with the checkpoint; give the largest difference of logits.

    Both compute in fp32, ours from weights rounded to the dtype of an export. Rows that only pad the vocabulary have
    no logits to compare. Needs `transformers`, memory for one
    model at a time, and a process group of this process alone, which it makes. Raises CheckpointError where the
    difference is above TOLERANCE.
    """
    model = source.config.model
    generator = torch.Generator().manual_seed(0)
    length = min(model.max_position_embeddings, MAX_LENGTH)
    ids = torch.randint(model.vocab_size, (NUM_SEQUENCES, length), generator=generator)
    ours = our_logits(source.reader, model, ids, dtype)
    theirs = _their_logits(folder, ids)[..., : model.vocab_size]
    if theirs.shape != ours.shape:
        raise CheckpointError(
            f"{folder} gives logits of shape {list(theirs.shape)}, the checkpoint {list(ours.shape)}"
        )
    difference = float((ours - theirs).abs().max())
    allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
    # Written so that nan fails too.
    if not difference <= allowed:
        raise CheckpointError(
            f"{folder} is not the model of {source.reader.folder}: its logits differ by {difference:.2e} "
            f"and {allowed:.0e} is allowed"
        )
    return difference


def our_logits(
    reader: CheckpointReader, config: ModelConfig, ids: Tensor, dtype: torch.dtype
) -> Tensor:
    """Run our model on ids [b, s] in fp32, its weights rounded to dtype: [b, s, v] without padding."""
    config = dataclasses.replace(config, recompute_granularity=None, attention_backend="explicit")
    # A store of this process only: no port, no launcher.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        context = ParallelContext.create(ParallelConfig(), 1, torch.device("cpu"))
        module = GPTModel(
            config,
            context,
            layers=range(config.num_layers),
            is_first=True,
            is_last=True,
            seed=0,
            sequence_parallel=False,
        ).eval()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                assert isinstance(parameter, DTensor)
                parameter.to_local().copy_(reader.read(f"model.{name}").to(dtype))
            logits = module(ids)  # [s, b, v]
    finally:
        dist.destroy_process_group()
    return logits.transpose(0, 1)[..., : config.vocab_size]


def _their_logits(folder: Path, ids: Tensor) -> Tensor:
    """Run the exported model on ids [b, s] in fp32: [b, s, v]."""
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "--verify needs the transformers package: pip install transformers"
        ) from None
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    with torch.no_grad():
        return loaded.eval()(ids).logits
