"""Loading a model to predict with: this process's part of each weight, in the dtype of the computation, and no more.

Parameters become plain tensors; on a CPU the weights of products are laid out for its fast kernels, and what is no such
weight is in fp32 where these compute in it. Memory: the part of the model and a few blocks of rows. No initial values are
drawn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from megatron.checkpoint.metadata import has_row_per_token
from megatron.checkpoint.safetensors_file import BLOCK_BYTES
from megatron.kernels import cuda_library, packed_product, prediction
from megatron.kernels.packed_product import PackedProduct, PackedProductGelu, already_active
from megatron.kernels.prediction import (
    PanelProduct,
    PanelProductGelu,
    Stage,
    StageEnds,
    StageLayer,
)
from megatron.layer_split import assign_stages
from megatron.logging import get_logger
from megatron.model.gpt import GPTModel, choose_model_kernels
from megatron.model.transformer import TransformerLayer
from megatron.options import ModelConfig, ParallelConfig, pad_vocab_size
from megatron.parallel.context import ParallelContext
from megatron.parallel.layers import (
    ColumnParallelLinear,
    PartialGradientLinear,
    RowParallelLinear,
)

logger = get_logger(__name__)

VOCAB_MULTIPLE = 16  # rows of a process's share of the vocabulary
LINEAR = (ColumnParallelLinear, PartialGradientLinear, RowParallelLinear)


ProductKind = type[PanelProduct] | type[PackedProduct]


class Tensors(Protocol):
    """A model on disk: whole tensors under our names behind "model.", by runs of their rows."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, rows: slice) -> Tensor: ...


def load_model(
    config: ModelConfig,
    tensors: Tensors,
    context: ParallelContext,
    dtype: torch.dtype,
    *,
    attention_backend: str = "auto",
) -> GPTModel:
    """Load this process's stage of a model of these options onto its device, its weights in dtype.

    Raises CheckpointError for damaged files, ConfigError for a layout that does not fit the model.
    """
    config = predicting_config(config, context.tp_size, attention_backend)
    config.check_tensor_parallel(context.tp_size)
    parallel = ParallelConfig(
        tensor_model_parallel_size=context.tp_size, pipeline_model_parallel_size=context.pp_size
    )
    (stage,) = assign_stages(config.num_layers, parallel, context.pp_rank)
    kinds, layout = _choose_products(context.device, dtype)
    hidden_dtype = torch.float32 if kinds is not None and kinds[0] is PanelProduct else dtype
    # chunks of a prompt attend to more keys than they have queries, as a sequence that is shared does
    kernels = choose_model_kernels(config, context.device, hidden_dtype, splits_sequences=True)
    model = GPTModel(
        config,
        dataclasses.replace(context, device=torch.device("meta")),
        layers=stage.layers,
        is_first=stage.is_first,
        is_last=stage.is_last,
        seed=0,
        sequence_parallel=False,
        kernels=kernels,
    )
    if context.device.type == "cpu":
        logger.info("weights %s, in %s", layout, str(dtype).removeprefix("torch."))
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            part = _read_part(tensors, f"model.{prefix}.{name}", parameter, dtype)
            if not (name == "weight" and isinstance(module, LINEAR)):
                part = part.to(hidden_dtype)
            _replace(module, name, part.to(context.device))
    if kinds is not None:
        _pack(model, *kinds, dtype)
    return model.eval()


def hidden_dtype(model: GPTModel) -> torch.dtype:
    """Give the dtype of what goes through a loaded stage, and of its keys and values: that of its norms."""
    norms = [layer.input_layernorm for layer in _layers(model)]
    norms += [model.final_layernorm] if model.is_last else []
    return norms[0].weight.dtype if norms else model.embedding.word_embeddings.weight.dtype


def make_stage(model: GPTModel) -> Stage | None:
    """Make what takes tokens through a loaded stage in one call; None where that is for each operation, as is logged.

    It is for stages that one process has to itself, and whose weights `load_model` has laid out for it.
    """
    config, layers = model.config, [_stage_layer(layer) for layer in _layers(model)]
    parts = [layer for layer in layers if layer is not None]
    if not parts or len(parts) < len(layers):
        return None  # and `load_model` has said how weights lie
    if model.region.size > 1:
        logger.info("layers run by their operations, as %d processes share each", model.region.size)
        return None
    ends = StageEnds()
    if model.is_first:
        words, places = model.embedding.word_embeddings, model.embedding.position_embeddings
        ends = StageEnds(words.weight, None if places is None else places.weight)
    if model.is_last:
        assert isinstance(model.output_product, PanelProduct)
        norm = model.final_layernorm
        ends = dataclasses.replace(ends, norm=(norm.weight, norm.bias), output=model.output_product)
    return Stage(
        parts,
        ends,
        num_heads=config.num_attention_heads,
        num_groups=config.query_groups,
        head_dim=config.head_dim,
        window=config.window_size,
        epsilon=config.layernorm_epsilon,
    )


def _layers(model: GPTModel) -> list[TransformerLayer]:
    layers = list(model.layers.values())
    assert all(isinstance(layer, TransformerLayer) for layer in layers)
    return cast(list[TransformerLayer], layers)


def _stage_layer(layer: TransformerLayer) -> StageLayer | None:
    attention, mlp = layer.self_attention, layer.mlp
    qkv, dense = attention.joined, attention.dense.product
    up, down = mlp.dense_h_to_4h.product, mlp.dense_4h_to_h.product
    if not (
        isinstance(qkv, PanelProduct)
        and isinstance(dense, PanelProduct)
        and isinstance(up, PanelProductGelu)
        and isinstance(down, PanelProduct)
    ):
        return None
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    return StageLayer(
        (first.weight, first.bias), qkv, dense, (second.weight, second.bias), up, down
    )


def _choose_products(
    device: torch.device, dtype: torch.dtype
) -> tuple[tuple[ProductKind, ProductKind] | None, str]:
    """Choose what multiplies without and with a GELU, None for what training does, and say how weights lie for it."""
    ours = prediction.obstacle(device, dtype)
    if ours is None:
        return (PanelProduct, PanelProductGelu), "packed for the CPU's vectors"
    theirs = packed_product.obstacle(device, dtype)
    if theirs is None:
        return (PackedProduct, PackedProductGelu), f"packed by oneDNN (our packing {ours})"
    return None, f"as they are (our packing {ours}; oneDNN's {theirs})"


def predicting_config(model: ModelConfig, tp_size: int, attention_backend: str) -> ModelConfig:
    """Leave out of a model's options what is for training only."""
    backend: Any = attention_backend  # a Literal, checked where the kernel is chosen
    # Never what is compiled: anew for each length of a prompt, and torch gives up at the ninth. Nor ours on a CPU, which
    # beside products of several processes takes two to five times torch's microseconds for one token.
    kernels = ("auto",) if cuda_library.obstacle() is None else ("reference",)
    return dataclasses.replace(
        model,
        padded_vocab_size=pad_vocab_size(model.vocab_size, VOCAB_MULTIPLE, tp_size),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        recompute_granularity=None,
        recompute_modules=None,
        recompute_method=None,
        recompute_num_layers=None,
        logits_chunk_size=None,
        attention_backend=backend,
        deterministic_mode=False,
        kernels=kernels,
    )


def _read_part(tensors: Tensors, name: str, parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Read this process's part of a weight; rows of padding that the source lacks are 0."""
    assert isinstance(parameter, DTensor)
    (placement,) = parameter.placements
    rank, local = parameter.device_mesh.get_local_rank(), parameter.to_local()
    part = torch.zeros(local.shape, dtype=dtype)
    num_rows = tensors.shape(name)[0]
    if not has_row_per_token(name):
        assert num_rows == parameter.size(0)
    first, last, columns = 0, min(num_rows, parameter.size(0)), slice(None)
    if isinstance(placement, Shard) and placement.dim == 0:
        first, last = rank * len(part), min(last, (rank + 1) * len(part))
    elif isinstance(placement, Shard):
        columns = slice(rank * part.size(1), (rank + 1) * part.size(1))
    block_rows = max(1, BLOCK_BYTES // (4 * math.prod(parameter.shape[1:])))
    for start in range(first, last, block_rows):
        stop = min(start + block_rows, last)
        block = tensors.read(name, slice(start, stop))
        part[start - first : stop - first] = block if block.ndim == 1 else block[:, columns]
    return part


def _replace(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Put a plain tensor in the place of a parameter: Python finds it sooner, which counts at one token a step."""
    module._parameters.pop(name, None)
    setattr(module, name, tensor)


def _pack(model: GPTModel, kind: ProductKind, gelu_kind: ProductKind, dtype: torch.dtype) -> None:
    """Lay out the weights of all products, one after another; what is laid out is there once."""
    for layer in _layers(model):
        attention = layer.self_attention
        query, key_value = attention.query, attention.key_value
        rows = key_value.rows if isinstance(key_value, PartialGradientLinear) else slice(None)
        bias = None
        if query.bias is not None and key_value.bias is not None:
            bias = torch.cat([query.bias, key_value.bias[rows]])
        attention.joined = kind(torch.cat([query.weight, key_value.weight[rows]]), bias)
        _replace(query, "weight", None)
        _replace(key_value, "weight", None)
        _pack_product(attention.dense, kind)
        _pack_product(layer.mlp.dense_h_to_4h, gelu_kind)
        layer.mlp.bias_gelu = already_active
        _pack_product(layer.mlp.dense_4h_to_h, kind)
    if model.is_last:
        _pack_output(model, kind, dtype)


def _pack_product(product: ColumnParallelLinear | RowParallelLinear, kind: ProductKind) -> None:
    # what is summed over processes takes the bias after that
    keeps_bias = isinstance(product, RowParallelLinear) and product.region.size > 1
    product.product = kind(product.weight, None if keeps_bias else product.bias)
    _replace(product, "weight", None)
    if not keeps_bias:
        _replace(product, "bias", None)


def _pack_output(model: GPTModel, kind: ProductKind, dtype: torch.dtype) -> None:
    """Lay out the LM head; where the embedding is it, and tokens are looked up here, it is there twice."""
    is_tied = not model.config.untie_embeddings_and_output_weights
    head = model.embedding.word_embeddings if is_tied else model.output_layer
    model.output_product = kind(head.weight.to(dtype), None)
    if not (is_tied and model.is_first):
        _replace(head, "weight", None)
