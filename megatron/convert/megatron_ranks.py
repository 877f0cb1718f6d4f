"""What the ranks of BigCode's Megatron-LM left in their folders, put into the order of ranks and layers.

    DIR/latest_checkpointed_iteration.txt              an iteration, or "release"
    DIR/iter_0240000/mp_rank_TT/model_optim_rng.pt     one pipeline stage
    DIR/iter_0240000/mp_rank_TT_PPP/model_optim_rng.pt several

Each file holds the arguments of the run and one rank's part of the weights, its layers counted from 0. Knows
nothing of how the parts of a tensor fit together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron.checkpoint.layout import TRACKER
from megatron.convert.fields import Fields
from megatron.convert.torch_file import Record, StoredTensor, read_torch_file
from megatron.errors import CheckpointError, ConfigError

FILE = "model_optim_rng.pt"
MIN_VERSION = 2.0  # before it, queries, keys and values lay in another order

_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(_\d{3,})?")
_STACK = re.compile(r"language_model\.(?:encoder|transformer)\.")
_LAYER = re.compile(_STACK.pattern + r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Part:
    """One rank's part of a tensor."""

    rank: str  # the name of its folder
    tensor: StoredTensor


@dataclass(frozen=True)
class Rank:
    """What one rank's file holds."""

    name: str
    arguments: Fields
    iteration: int
    chunks: tuple[dict[str, StoredTensor], ...]  # of the pipeline, by name; several if interleaved


def find_folder(path: Path, iteration: int | None) -> Path:
    """Find the folder that holds the ranks' folders. Raises CheckpointError when there is none."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give the --save of a Megatron run")
    if any(_RANK_FOLDER.fullmatch(folder.name) for folder in path.iterdir()):
        if iteration is not None:
            raise ConfigError(
                f"{path} is one checkpoint; leave --iteration out, or give the folder above"
            )
        return path
    if iteration is not None:
        name = f"iter_{iteration:07d}"
    else:
        try:
            name = (path / TRACKER).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise CheckpointError(
                f"{path} has neither mp_rank_ folders nor a readable {TRACKER}; give the --save of a Megatron "
                f"run, or one of its iter_ folders"
            ) from None
        if name != "release":
            if not re.fullmatch(r"\d{1,12}", name):
                raise CheckpointError(
                    f"{path / TRACKER} holds {name[:40]!r}, not an iteration or release"
                )
            name = f"iter_{int(name):07d}"
    if not (path / name).is_dir():
        raise CheckpointError(
            f"{path} has no {name}; --iteration chooses another, or give the folder itself"
        )
    return path / name


def read_grid(folder: Path) -> list[list[Rank]]:
    """Read the ranks' files: [pipeline stage][tensor parallel rank]. Every rank of the run must be there."""
    found = sorted(name.name for name in folder.iterdir() if _RANK_FOLDER.fullmatch(name.name))
    if not found:
        raise CheckpointError(f"{folder} has no mp_rank_ folders")
    first = _read_rank(folder, found[0])
    tp_size = first.arguments.whole("tensor_model_parallel_size")
    pp_size = first.arguments.whole("pipeline_model_parallel_size")
    where = f"{folder} is of a run at TP {tp_size} and PP {pp_size}"
    names: list[list[str]] = []
    for pp_rank in range(pp_size):
        suffix = f"_{pp_rank:03d}" if pp_size > 1 else ""
        names.append([])
        for tp_rank in range(tp_size):
            names[-1].append(f"mp_rank_{tp_rank:02d}{suffix}")
            if names[-1][-1] not in found:
                raise CheckpointError(
                    f"{where}, and {names[-1][-1]} is missing; copy the checkpoint again"
                )
    extra = sorted(set(found) - {name for stage in names for name in stage})
    if extra:
        raise CheckpointError(f"{where}, and {extra[0]} has no place in it; move it away")
    return [
        [first if name == found[0] else _read_rank(folder, name) for name in stage]
        for stage in names
    ]


def _read_rank(folder: Path, name: str) -> Rank:
    path = folder / name / FILE
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("args"), Record):
        raise CheckpointError(f"{path} is no checkpoint of Megatron: it has no args")
    arguments = Fields(content["args"].values, str(path))
    version = content.get("checkpoint_version")
    if not isinstance(version, float) or version < MIN_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint_version {version!r}; {MIN_VERSION} and later are read: load and save it with "
            f"the program that wrote it"
        )
    iteration = content.get("iteration", 0)
    if type(iteration) is not int or iteration < 0:
        raise CheckpointError(f"{path} has iteration {iteration!r}")
    keys = ["model"] if "model" in content else []
    while "model" not in content and f"model{len(keys)}" in content:
        keys.append(f"model{len(keys)}")
    if not keys:
        raise CheckpointError(f"{path} is no checkpoint of Megatron: it has no model")
    chunks = []
    for key in keys:
        tensors: dict[str, StoredTensor] = {}
        _flatten(content[key], "", tensors, path)
        chunks.append(tensors)
    return Rank(name, arguments, iteration, tuple(chunks))


def _flatten(value: object, prefix: str, tensors: dict[str, StoredTensor], path: Path) -> None:
    """Collect the tensors of nested dicts under joined names."""
    if isinstance(value, StoredTensor):
        tensors[prefix] = value
        return
    # A pickle can make a dict that holds itself.
    if not isinstance(value, dict) or prefix.count(".") > 12:
        raise CheckpointError(f"{path} has {prefix} among its weights, which is no tensor")
    for name, item in value.items():
        _flatten(item, f"{prefix}.{name}" if prefix else str(name), tensors, path)


def gather(folder: Path, grid: list[list[Rank]], num_layers: int) -> dict[str, list[Part]]:
    """Give the parts of each tensor in the order of tensor parallel ranks, layers counted through the pipeline."""
    parts: dict[str, list[Part]] = {}
    tp_size, num_chunks = len(grid[0]), len(grid[0][0].chunks)
    if any(len(rank.chunks) != num_chunks for stage in grid for rank in stage):
        raise CheckpointError(f"{folder}: its ranks have different numbers of pipeline chunks")
    for tp_rank in range(tp_size):
        first_layer = 0
        # Interleaved: the first chunks of all stages come before the second ones.
        for chunk in range(num_chunks):
            for stage in grid:
                rank = stage[tp_rank]
                for name, tensor in rank.chunks[chunk].items():
                    parts.setdefault(our_name(name, first_layer), []).append(
                        Part(rank.name, tensor)
                    )
                first_layer += _count_layers(rank.chunks[chunk])
        if first_layer != num_layers:
            raise CheckpointError(
                f"{folder} has {first_layer} layers and its num_layers is {num_layers}"
            )
    for name, found in parts.items():
        if len(found) != tp_size:
            raise CheckpointError(
                f"{folder} has {len(found)} parts of {name} ({found[0].rank} …) and its tensor parallel "
                f"size is {tp_size}"
            )
    return parts


def our_name(name: str, first_layer: int) -> str:
    """Rename: older names of the encoder and its attention, and layers that each stage counts from 0."""
    match = _LAYER.fullmatch(name)
    if match:
        rest = match[2]
        if rest.startswith("attention."):
            rest = f"self_{rest}"
        return f"layers.{first_layer + int(match[1])}.{rest}"
    return _STACK.sub("", name).removeprefix("language_model.")


def _count_layers(chunk: dict[str, StoredTensor]) -> int:
    return len({match[1] for match in map(_LAYER.fullmatch, chunk) if match})
