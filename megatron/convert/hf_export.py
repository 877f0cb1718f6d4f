"""A checkpoint as a folder that transformers loads.

Weights are streamed from file to file, a block of rows at a time: no GPU, no process group, and memory that does
not grow with the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.safetensors_file import (
    SafetensorsReader,
    SafetensorsWriter,
    TensorSpec,
    row_blocks,
)
from megatron.convert.hf_architecture import Architecture
from megatron.convert.hf_folder import INDEX_FILE, SINGLE_FILE
from megatron.convert.hf_gpt_bigcode import GPT_BIGCODE
from megatron.convert.hf_starcoder2 import STARCODER2
from megatron.convert.hf_tokenizer import write_tokenizer
from megatron.convert.imported import GENERATION_CONFIG
from megatron.convert.mapping import MappedTensor, Rows
from megatron.convert.model_card import model_card
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, ConfigError
from megatron.options import ModelConfig

# In the header of each file of weights: "format" is what transformers asks for, the rest says who wrote it. Not in
# config.json, which transformers copies, unknown fields included, into what it saves of a loaded model.
METADATA = {"format": "pt", "written_by": "convert_to_hf.py"}


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    num_parameters: int
    num_bytes: int
    num_weight_files: int


def export_hf(
    source: RunSource,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
    progress: Callable[[int], object],
) -> ExportSummary:
    """Write config, tokenizer, model card and weights into an empty folder.

    progress is told the bytes of weights as they are written. Raises ConfigError if no architecture can hold the
    model, CheckpointError if the checkpoint does not have what its configuration says.
    """
    model = source.config.model
    architecture = architecture_of(model)
    tensors = architecture.map(model)
    check_source(source.reader, tensors)
    _write_json(folder / "config.json", _config(model, architecture, source.eod, dtype))
    _write_json(folder / GENERATION_CONFIG, _generation_config(source))
    if source.tokenizer is not None:
        write_tokenizer(
            source.tokenizer,
            source.tokenizer_folder,
            folder,
            model.max_position_embeddings,
            source.chat_template(),
        )
    num_parameters = sum(tensor.num_values for tensor in tensors)
    card = model_card(source, architecture, num_parameters, dtype)
    (folder / "README.md").write_text(card, encoding="utf-8")
    num_files = write_weights(source.reader, tensors, folder, dtype, max_shard_bytes, progress)
    return ExportSummary(num_parameters, num_parameters * dtype.itemsize, num_files)


def architecture_of(model: ModelConfig) -> Architecture:
    """Choose by the kind of positions; whether it has a place for the rest is for its `map` to say."""
    return STARCODER2 if model.has_rotary_positions else GPT_BIGCODE


def _config(
    model: ModelConfig, architecture: Architecture, eod: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Give the config.json of the exported model."""
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": model.vocab_size,
        **architecture.write_fields(model),
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "bos_token_id": eod,
        "eos_token_id": eod,
        "use_cache": True,
        # transformers 5 calls it dtype and reads this name too; version 4 reads only this one.
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def check_source(reader: CheckpointReader, tensors: Sequence[MappedTensor]) -> None:
    """Raise CheckpointError unless the checkpoint has the rows that all tensors are made of, and no other weights."""
    names = set(reader.names())
    used = {f"model.{rows.name}" for tensor in tensors for rows in tensor.rows}
    missing = sorted(used - names)
    unused = sorted(name for name in names - used if name.startswith("model."))
    if missing or unused:
        what = f"lacks {missing[0]}" if missing else f"has {unused[0]}, which has no place in it"
        raise CheckpointError(
            f"{reader.folder} does not hold the model of its config.json: it {what}"
        )
    for tensor in tensors:
        for rows in tensor.rows:
            shape = reader.shape(f"model.{rows.name}")
            if (
                len(shape) != len(tensor.shape)
                or shape[1:] != tensor.shape[1:]
                or (shape[0] < rows.stop)
            ):
                raise CheckpointError(
                    f"{reader.folder} does not hold the model of its config.json: {rows.name} is "
                    f"{list(shape)} and {tensor.name} needs {rows.stop} rows of {list(tensor.shape[1:])}"
                )


def write_weights(
    reader: CheckpointReader,
    tensors: Sequence[MappedTensor],
    folder: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
    progress: Callable[[int], object],
) -> int:
    """Write model.safetensors, or several files of at most max_shard_bytes and their index; give their number.

    A tensor larger than max_shard_bytes has a file of its own.
    """
    shards = _plan_shards(tensors, dtype.itemsize, max_shard_bytes)
    names = (
        [SINGLE_FILE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        specs = [TensorSpec(tensor.name, dtype, tensor.shape) for tensor in shard]
        with SafetensorsWriter(folder / name, specs, METADATA) as writer:
            for tensor in shard:
                for rows in tensor.rows:
                    _copy_rows(reader, rows, tensor.name, writer, dtype, progress)
    if len(shards) > 1:
        total = sum(tensor.num_values for tensor in tensors) * dtype.itemsize
        places = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": places})
    return len(shards)


def _copy_rows(
    reader: CheckpointReader,
    rows: Rows,
    target: str,
    writer: SafetensorsWriter,
    dtype: torch.dtype,
    progress: Callable[[int], object],
) -> None:
    name = f"model.{rows.name}"
    row_bytes = math.prod(reader.shape(name)[1:]) * reader.dtype(name).itemsize
    for start, stop in row_blocks(rows.start, rows.stop, row_bytes):
        values = reader.read(name, slice(start, stop))
        converted = _convert(values, rows.name, dtype)
        writer.write(target, converted)
        progress(converted.nbytes)


def _convert(values: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """Round to dtype. Raises ConfigError where a finite value has no place in it (fp16 ends at 65504)."""
    converted = values.to(dtype)
    if dtype == torch.float16 and bool((converted.isinf() & values.isfinite()).any()):
        raise ConfigError(f"{name} has values beyond the range of fp16; use --dtype bf16 or fp32")
    return converted


def _plan_shards(
    tensors: Sequence[MappedTensor], itemsize: int, max_shard_bytes: int
) -> list[list[MappedTensor]]:
    """Fill files in the order of the tensors."""
    shards: list[list[MappedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        num_bytes = tensor.num_values * itemsize
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += num_bytes
    return shards


def is_export(folder: Path) -> bool:
    """Tell whether a folder holds a model that this module wrote, which another export may replace."""
    files = list(folder.glob("*.safetensors"))
    try:
        return bool(files) and all(SafetensorsReader(file).metadata == METADATA for file in files)
    except CheckpointError:
        return False


def _generation_config(source: RunSource) -> dict[str, Any]:
    """Give what the run was converted with, if it was; a document ends as the tokenizer says."""
    eod = source.eod
    template = source.chat_template()
    ends = [eod]
    if source.tokenizer is not None and template is not None:  # what ends an answer ends a text
        ends = list(dict.fromkeys([eod, source.tokenizer.special_tokens[template.end]]))
    return {
        "bos_token_id": eod,
        "eos_token_id": ends if len(ends) > 1 else eod,
        "pad_token_id": eod,
    } | source.generation_config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
