"""Whether a folder of transformers computes what a checkpoint of ours does.

Its config.json is read back and compared exactly; then the logits of both on the same random tokens, on the CPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron.checkpoint.files import read_json_object
from megatron.checkpoint.reader import CheckpointReader
from megatron.convert.fields import Fields
from megatron.convert.hf_import import architecture_named
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, ConfigError
from megatron.model.gpt import GPTModel
from megatron.options import ModelConfig, ParallelConfig
from megatron.parallel.context import ParallelContext

TOLERANCE = 1e-5  # of fp32 logits, relative to the largest where that is above 1
NUM_SEQUENCES, LENGTH = 2, 64
BEYOND_WINDOW = 8  # tokens that do not see the first one
# Logits tell a window of 4,096 from one of 4,095, or two near bases, no better than rounding does.
FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_size",
    "num_attention_heads",
    "query_groups",
    "head_dim",
    "max_position_embeddings",
    "has_rotary_positions",
    "window_size",
    "layernorm_epsilon",
    "disable_bias_linear",
    "untie_embeddings_and_output_weights",
    "hidden_dropout",
    "attention_dropout",
)


def verify_hf(source: RunSource, folder: Path, dtype: torch.dtype) -> float:
    """Compare a folder of transformers, exported or imported, with the checkpoint; give the largest difference of logits.

    Both compute in fp32, on two sequences of 64 tokens, or on one that is longer than a sliding window; ours from weights
    rounded to the dtype of an export. Rows that only pad the vocabulary have no logits to compare. Needs `transformers`,
    memory for one model at a time, and a process group of this process alone, which it makes. Raises CheckpointError
    where the difference is above TOLERANCE, or a field of config.json is another.
    """
    model = source.config.model
    check_fields(model, folder)
    ids = torch.randint(
        model.vocab_size, _shape_of_ids(model), generator=torch.Generator().manual_seed(0)
    )
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


def check_fields(model: ModelConfig, folder: Path) -> None:
    """Raise CheckpointError where the config.json of a folder does not describe the model."""
    path = folder / "config.json"
    fields = Fields(read_json_object(path), str(path))
    theirs = architecture_named(fields).read_fields(fields, True)
    # A base means nothing to learned positions, and config.json then has none.
    names = (*FIELDS, "rotary_base") if model.has_rotary_positions else FIELDS
    for name in names:
        value, found = getattr(model, name), getattr(theirs, name)
        if value != found:
            raise CheckpointError(
                f"{path} is not of the checkpoint's model: its {name} is {found} and has to be {value}"
            )


def _shape_of_ids(model: ModelConfig) -> tuple[int, int]:
    """Choose sequences that a sliding window cuts off, where there are so many positions."""
    length = LENGTH
    if model.window_size is not None:
        length = max(length, model.window_size + BEYOND_WINDOW)
    # One where it is long: a window of 4,096 takes gigabytes of attention scores a sequence.
    num_sequences = NUM_SEQUENCES if length == LENGTH else 1
    return num_sequences, min(model.max_position_embeddings, length)


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
        folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    with torch.no_grad():
        return loaded.eval()(ids).logits
