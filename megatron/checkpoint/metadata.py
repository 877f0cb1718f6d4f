"""What a checkpoint holds: every tensor's shape and dtype, and which file has which part of it.

Written as `metadata.json`. Reading it back checks all of it, so that whoever uses a `CheckpointMetadata` may
rely on its parts covering each tensor exactly once. Knows nothing of processes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.checksums import SUMS_FILE, read_checked, read_sums
from megatron.checkpoint.files import damaged, parse_json_object
from megatron.checkpoint.layout import (
    CONFIG_FILE,
    METADATA_FILE,
    STATE_FILE,
    find_wrong_length,
)
from megatron.checkpoint.safetensors_file import DTYPE_NAMES, DTYPES, TensorSpec
from megatron.errors import CheckpointError

FORMAT_VERSION = 2
# Tensors with a row for each token and then rows of padding, as many as the tensor parallel size asks for.
VOCABULARY_NAMES = ("embedding.word_embeddings.weight", "output_layer.weight")

_FILE_NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*\.(safetensors|json)")


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor that lies whole in one file."""

    file: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """A whole tensor and the chunks that make it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class CheckpointMetadata:
    """The content of `metadata.json`."""

    iteration: int
    world_size: int
    files: dict[str, int]  # name -> bytes, all files but metadata.json itself
    tensors: dict[str, TensorEntry]

    def check_files(self, folder: Path) -> None:
        """Raise CheckpointError unless every file is there in full length."""
        problem = find_wrong_length(folder, self.files)
        if problem is not None:
            raise CheckpointError(f"{problem}; copy it again or load an older checkpoint")


def chunk_key(name: str, offsets: Sequence[int]) -> str:
    """Give the key of a chunk inside its file."""
    return f"{name}@{','.join(str(offset) for offset in offsets)}"


def chunk_spec(name: str, entry: TensorEntry, chunk: Chunk) -> TensorSpec:
    """Describe a chunk as a tensor of its file."""
    return TensorSpec(chunk_key(name, chunk.offsets), entry.dtype, chunk.sizes)


def has_row_per_token(name: str) -> bool:
    """Tell whether a tensor of this name, of the model or the optimizer, ends in rows that only pad the vocabulary."""
    return name.endswith(VOCABULARY_NAMES)


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Give the number of tokens where the configuration beside a checkpoint says it."""
    model = config.get("model")
    size = model.get("vocab_size") if isinstance(model, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def find_uncovered(entry: TensorEntry) -> str | None:
    """Say why the chunks are no grid that covers the tensor exactly once, None if they are one.

    Every layout cuts each dim at the same places all along the others, so a grid is all there can be.
    """
    num_dims = len(entry.shape)
    for chunk in entry.chunks:
        if len(chunk.offsets) != num_dims or len(chunk.sizes) != num_dims:
            return f"a chunk at {list(chunk.offsets)} has another number of dims"
    intervals = [
        {(chunk.offsets[dim], chunk.sizes[dim]) for chunk in entry.chunks}
        for dim in range(num_dims)
    ]
    for dim, cuts in enumerate(intervals):
        end = 0
        for offset, size in sorted(cuts):
            if offset != end or size <= 0:
                return f"dim {dim} is not covered once at {min(offset, end)}"
            end = offset + size
        if end != entry.shape[dim] and math.prod(entry.shape) > 0:
            return f"dim {dim} is covered to {end} of {entry.shape[dim]}"
    if math.prod(entry.shape) == 0:
        return "it is empty and has chunks" if entry.chunks else None
    present = {(chunk.offsets, chunk.sizes) for chunk in entry.chunks}
    wanted = math.prod(len(cuts) for cuts in intervals)
    if len(entry.chunks) != wanted or len(present) != wanted:
        return f"it has {len(entry.chunks)} chunks and {wanted} cover it"
    return None


def encode_metadata(metadata: CheckpointMetadata) -> bytes:
    """Give the content of `metadata.json`, a line for each tensor."""
    head = {
        "format_version": FORMAT_VERSION,
        "iteration": metadata.iteration,
        "world_size": metadata.world_size,
        "files": metadata.files,
    }
    tensors = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(_entry_to_json(entry))}"
        for name, entry in sorted(metadata.tensors.items())
    )
    return f'{json.dumps(head)[:-1]}, "tensors": {{\n{tensors}\n}}}}\n'.encode()


def _entry_to_json(entry: TensorEntry) -> dict[str, Any]:
    return {
        "shape": entry.shape,
        "dtype": DTYPE_NAMES[entry.dtype],
        "chunks": [
            {"file": chunk.file, "offsets": chunk.offsets, "sizes": chunk.sizes}
            for chunk in entry.chunks
        ],
    }


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Read and check `metadata.json` and the lengths of the files it lists, but not their content.

    Raises CheckpointError when the folder holds no checkpoint, or a damaged or foreign one.
    """
    path = folder / METADATA_FILE
    values = parse_json_object(path, read_checked(folder, METADATA_FILE))
    version = values.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"{path} has format version {version!r} and this program reads {FORMAT_VERSION}; "
            f"load it with the program that wrote it"
        )
    metadata = _Parser(path).metadata(values)
    if set(read_sums(folder)) != {METADATA_FILE, *metadata.files}:
        raise damaged(folder / SUMS_FILE, f"it does not list the files of {METADATA_FILE}")
    metadata.check_files(folder)
    return metadata


class _Parser:
    """Turns JSON into the classes above, refusing whatever is not exactly as `encode_metadata` gives it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def metadata(self, values: dict[str, Any]) -> CheckpointMetadata:
        keys = ("format_version", "iteration", "world_size", "files", "tensors")
        _, iteration, world_size, files, tensors = self._fields(values, keys, "the file")
        self._require(isinstance(files, dict), "files is not an object")
        self._require(isinstance(tensors, dict), "tensors is not an object")
        for name, size in files.items():
            self._require(_FILE_NAME.fullmatch(name) is not None, f"{name!r} is no file of ours")
            self._count(size, f"the length of {name}")
        entries = {name: self._tensor(name, entry, files) for name, entry in tensors.items()}
        used = {chunk.file for entry in entries.values() for chunk in entry.chunks}
        self._require(
            set(files) == used | {STATE_FILE, CONFIG_FILE},
            f"it lists {sorted(files)} and its tensors lie in {sorted(used)}",
        )
        return CheckpointMetadata(
            self._count(iteration, "iteration"),
            self._count(world_size, "world_size"),
            files,
            entries,
        )

    def _tensor(self, name: str, values: Any, files: dict[str, int]) -> TensorEntry:
        shape, dtype, chunks = self._fields(values, ("shape", "dtype", "chunks"), name)
        self._require(isinstance(dtype, str) and dtype in DTYPES, f"{name} has dtype {dtype!r}")
        self._require(isinstance(chunks, list), f"the chunks of {name} are not a list")
        entry = TensorEntry(
            self._counts(shape, name),
            DTYPES[dtype],
            tuple(self._chunk(name, chunk, files) for chunk in chunks),
        )
        problem = find_uncovered(entry)
        self._require(problem is None, f"the chunks of {name} do not fit its shape: {problem}")
        return entry

    def _chunk(self, name: str, values: Any, files: dict[str, int]) -> Chunk:
        file, offsets, sizes = self._fields(values, ("file", "offsets", "sizes"), name)
        self._require(isinstance(file, str) and file in files, f"{name} lies in {file!r}")
        return Chunk(file, self._counts(offsets, name), self._counts(sizes, name))

    def _fields(self, values: Any, keys: Sequence[str], where: str) -> list[Any]:
        self._require(
            isinstance(values, dict) and set(values) == set(keys),
            f"{where} does not have the fields {', '.join(keys)}",
        )
        return [values[key] for key in keys]

    def _counts(self, values: Any, where: str) -> tuple[int, ...]:
        self._require(isinstance(values, list), f"{where} has {values!r} for a list of numbers")
        return tuple(self._count(value, where) for value in values)

    def _count(self, value: Any, where: str) -> int:
        is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
        self._require(is_count, f"{where} has {value!r} for a whole number")
        return int(value)

    def _require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise damaged(self._path, problem)
