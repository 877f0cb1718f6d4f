"""Checkpoints as BigCode's Megatron-LM lays them out, written from the description of the format alone.

Uses nothing of megatron.convert: whole weights, by our names, are cut here as that program cuts them.
"""

from __future__ import annotations

import argparse
import enum
import random
import sys
import types
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class PositionEmbeddingType(enum.Enum):
    """As in BigCode's megatron/model/enums.py, from where the arguments pickle it."""

    rotary = 1
    absolute = 2
    alibi = 3


@contextmanager
def their_package():
    """Make `megatron.model.enums` importable while a file is written, as it is where Megatron runs."""
    module = types.ModuleType("megatron.model.enums")
    module.PositionEmbeddingType = PositionEmbeddingType
    PositionEmbeddingType.__module__ = module.__name__
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


def arguments(config, tp: int, pp: int, **changes) -> argparse.Namespace:
    """The arguments of a run, the ones that matter and some that do not."""
    values = {
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.ffn_size,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.hidden_size // config.num_attention_heads,
        "attention_head_type": config.attention_head_type,
        "max_position_embeddings": config.max_position_embeddings,
        "seq_length": config.max_position_embeddings,
        "padded_vocab_size": config.padded_vocab_size,
        "make_vocab_size_divisible_by": 8,
        "layernorm_epsilon": 1e-5,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.2,
        "init_method_std": 0.0125,
        "untie_embeddings_and_output_weights": config.untie_embeddings_and_output_weights,
        "add_bias_linear": True,
        "bias_gelu_fusion": True,
        "openai_gelu": False,
        "glu_activation": None,
        "swiglu": False,
        "apply_layernorm_1p": False,
        "apply_residual_connection_post_layernorm": False,
        "num_experts": None,
        "add_position_embedding": True,
        "use_rotary_position_embeddings": False,
        "position_embedding_type": PositionEmbeddingType.absolute,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "params_dtype": torch.bfloat16,
        "bf16": True,
        "fp16": False,
        "fim_rate": 0.5,
        "fim_spm_rate": 0.5,
        "tokenizer_type": "TokenizerFromFile",
        "tokenizer_file": "/gone/tokenizer.json",
        "consumed_train_samples": 700,
        "seed": 1234,
    }
    return argparse.Namespace(**(values | changes))


def query_key_value(weights: dict[str, Tensor], layer: int, kind: str, num_heads: int) -> Tensor:
    """Multi-head: [heads, (query, key, value), d, …] in one matrix."""
    prefix = f"layers.{layer}.self_attention"
    query = weights[f"{prefix}.query.{kind}"]
    rest = query.shape[1:]
    query = query.view(num_heads, 1, -1, *rest)
    key_value = weights[f"{prefix}.key_value.{kind}"].view(num_heads, 2, -1, *rest)
    return torch.cat([query, key_value], dim=1).reshape(-1, *rest)


def layer_tensors(weights, config, layer: int, tp: int, rank: int) -> dict[str, Tensor]:
    """One layer's part on a tensor parallel rank."""
    ours, theirs = f"layers.{layer}.", {}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        for kind in ("weight", "bias"):
            theirs[f"{norm}.{kind}"] = weights[f"{ours}{norm}.{kind}"]
    for kind in ("weight", "bias"):
        if config.attention_head_type == "multiquery":
            query = weights[f"{ours}self_attention.query.{kind}"]
            theirs[f"self_attention.query.{kind}"] = query.chunk(tp)[rank]
            theirs[f"self_attention.key_value.{kind}"] = weights[
                f"{ours}self_attention.key_value.{kind}"
            ]
        else:
            joined = query_key_value(weights, layer, kind, config.num_attention_heads)
            theirs[f"self_attention.query_key_value.{kind}"] = joined.chunk(tp)[rank]
        up = weights[f"{ours}mlp.dense_h_to_4h.{kind}"]
        theirs[f"mlp.dense_h_to_4h.{kind}"] = up.chunk(tp)[rank]
    for linear in ("self_attention.dense", "mlp.dense_4h_to_h"):
        theirs[f"{linear}.weight"] = weights[f"{ours}{linear}.weight"].chunk(tp, dim=1)[rank]
        theirs[f"{linear}.bias"] = weights[f"{ours}{linear}.bias"]
    return theirs


def chunk_of_model(weights, config, layers, tp: int, rank: int, *, is_first, is_last, has_pp):
    """The `model` entry of a file: layers numbered from 0, embeddings at the ends."""
    language_model: dict = {"encoder": OrderedDict()}
    for local, layer in enumerate(layers):
        for name, tensor in layer_tensors(weights, config, layer, tp, rank).items():
            language_model["encoder"][f"layers.{local}.{name}"] = tensor.clone()
    model = {"language_model": language_model}
    words = weights["embedding.word_embeddings.weight"].chunk(tp)[rank].clone()
    if is_first:
        positions = weights["embedding.position_embeddings.weight"].clone()
        language_model["embedding"] = {
            "word_embeddings": OrderedDict(weight=words),
            "position_embeddings": OrderedDict(weight=positions),
        }
    if is_last:
        for kind in ("weight", "bias"):
            language_model["encoder"][f"final_layernorm.{kind}"] = weights[
                f"final_layernorm.{kind}"
            ].clone()
        if config.untie_embeddings_and_output_weights:
            head = weights["output_layer.weight"].chunk(tp)[rank].clone()
            language_model["output_layer"] = OrderedDict(weight=head)
        elif has_pp:
            model["word_embeddings_for_head"] = OrderedDict(weight=words.clone())
    return model


def rank_folder(folder: Path, tp_rank: int, pp_rank: int, pp: int) -> Path:
    name = f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if pp > 1 else "")
    return folder / name


def write_megatron(
    root: Path,
    weights: dict[str, Tensor],
    config,
    *,
    tp: int,
    pp: int = 1,
    chunks: int = 1,
    release: bool = False,
    change=None,
    **argument_changes,
) -> Path:
    """Write a checkpoint of iteration 7; give its folder.

    chunks: of the interleaved pipeline. change(content, tp_rank, pp_rank): alter a rank's file before it is written.
    """
    folder = root / ("release" if release else "iter_0000007")
    (folder).mkdir(parents=True)
    (root / "latest_checkpointed_iteration.txt").write_text("release" if release else "7")
    size = config.num_layers // (pp * chunks)
    for tp_rank in range(tp):
        for pp_rank in range(pp):
            content = {
                "args": arguments(config, tp, pp, **argument_changes),
                "checkpoint_version": 3.0,
                "iteration": 7,
            }
            for chunk in range(chunks):
                first = (chunk * pp + pp_rank) * size
                key = "model" if chunks == 1 else f"model{chunk}"
                content[key] = chunk_of_model(
                    weights,
                    config,
                    range(first, first + size),
                    tp,
                    tp_rank,
                    is_first=first == 0,
                    is_last=first + size == config.num_layers,
                    has_pp=pp > 1,
                )
            content |= other_state()
            if change is not None:
                change(content, tp_rank, pp_rank)
            path = rank_folder(folder, tp_rank, pp_rank, pp)
            path.mkdir()
            with their_package():
                torch.save(content, path / "model_optim_rng.pt")
    return folder


def other_state() -> dict:
    """What stands beside the weights: optimizer, scheduler, generators."""
    return {
        "optimizer": {
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
            "fp32_from_fp16_params": [[torch.nn.Parameter(torch.ones(3))]],
        },
        "opt_param_scheduler": {"max_lr": 3e-4, "num_steps": 700},
        "rng_state": [
            {
                "random_rng_state": random.Random(1).getstate(),
                "np_rng_state": np.random.RandomState(1).get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            }
        ],
    }
