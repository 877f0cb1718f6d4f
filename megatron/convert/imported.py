"""A model from elsewhere, in our names, and how it becomes the folder of a run.

Each importer describes the tensors; here they are read (`ImportReader`), or streamed into a checkpoint of weights alone,
as Megatron's `release` is one: a run starts from it at iteration 0. Knows nothing of other formats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.checkpoint.files import encode_json, read_json_object
from megatron.checkpoint.layout import (
    STATE_FILE,
    TRACKER,
    checkpoint_folder,
    latest_iteration,
    saved_iterations,
)
from megatron.checkpoint.safetensors_file import row_blocks
from megatron.checkpoint.writer import CheckpointWriter
from megatron.config import Config, to_json
from megatron.convert.output_folder import check_target, new_folder
from megatron.errors import CheckpointError, ConfigError
from megatron.option_field import check_bounds
from megatron.options import ModelConfig
from megatron.progress import progress_bar
from megatron.tokenizer.interface import Tokenizer

GENERATION_CONFIG = "generation_config.json"  # beside a checkpoint that came with one
CONVERTED_FROM = "converted_from"  # in state.json of a checkpoint that came from elsewhere


@dataclass(frozen=True)
class ImportedTensor:
    """One of our tensors; blocks gives its values in row-major order, a run of rows at a time, in any float dtype."""

    name: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Import:
    """All that a run's folder is made of."""

    origin: str  # a name for people, not a path
    config: Config
    tensors: list[ImportedTensor]
    iteration: int = 0
    consumed_samples: int = 0
    tokenizer: Tokenizer | None = None
    generation_config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()  # what whoever converts should know

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


class ImportReader:
    """An import as `megatron.checkpoint.compare` and prediction read one: whole fp32 tensors under our names.

    It has weights and no state, and is read from the first row of a tensor to its last. Memory: a few blocks of rows.
    """

    def __init__(self, imported: Import, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {}
        self.config = {"model": {"vocab_size": imported.config.model.vocab_size}}
        self._tensors = {f"model.{tensor.name}": tensor for tensor in imported.tensors}
        self._name = ""  # of the tensor being read
        self._stream: _Stream | None = None

    def names(self) -> list[str]:
        """Name all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Give what every import becomes, without a change of value."""
        return torch.float32

    def read(self, name: str, rows: slice) -> Tensor:
        """Read rows start … stop - 1: [rows, …]. Anything but the next rows of the same tensor starts it over."""
        if self._stream is None or self._name != name or self._stream.next_row != rows.start:
            self._name, self._stream = name, _Stream(self._tensors[name])
            row_bytes = 4 * math.prod(self.shape(name)[1:])
            for first, last in row_blocks(0, rows.start, row_bytes):
                self._stream.take(last - first)
        return self._stream.take(rows.stop - rows.start)


class _Stream:
    """Cuts the blocks of a tensor, of whatever sizes, into the runs of rows that are asked for."""

    def __init__(self, tensor: ImportedTensor) -> None:
        self.next_row = 0
        self._row_shape = tensor.shape[1:]
        self._blocks = tensor.blocks()
        self._rest = torch.empty(0)

    def take(self, num_rows: int) -> Tensor:
        """Give the next num_rows rows."""
        wanted = num_rows * math.prod(self._row_shape)
        pieces, found = [self._rest], len(self._rest)
        while found < wanted:
            pieces.append(next(self._blocks).to(torch.float32).reshape(-1))
            found += len(pieces[-1])
        values = torch.cat(pieces)
        # A copy: a view would keep the whole of values in memory.
        self._rest = values[wanted:].clone()
        self.next_row += num_rows
        return values[:wanted].reshape(num_rows, *self._row_shape)


def write_import(imported: Import, root: Path, progress: Callable[[int], object]) -> None:
    """Write checkpoint, tokenizer and generation config into an empty folder.

    progress is told the bytes of weights as they are written. Memory: a few blocks of rows, whatever the model.
    """
    if imported.tokenizer is not None:
        (root / "tokenizer").mkdir()
        imported.tokenizer.save(root / "tokenizer")
    if imported.generation_config is not None:
        (root / GENERATION_CONFIG).write_bytes(encode_json(imported.generation_config))
    shapes = {f"model.{tensor.name}": tensor.shape for tensor in imported.tensors}
    with CheckpointWriter(root, imported.iteration, shapes) as writer:
        for tensor in imported.tensors:
            for block in tensor.blocks():
                values = block.to(torch.float32)
                writer.write(f"model.{tensor.name}", values)
                progress(values.nbytes)
        state = {
            "iteration": imported.iteration,
            "consumed_samples": imported.consumed_samples,
            CONVERTED_FROM: imported.origin,
        }
        writer.publish(state=state, config=to_json(imported.config))


def convert(
    open_import: Callable[[], Import],
    save: Path,
    *,
    overwrite: bool,
    verify: Callable[[Path], str] | None = None,
) -> None:
    """Do what a converting tool does: check, write aside with a progress bar, verify, publish, say what was done.

    verify gets the folder before it has its name, and gives words for the summary.
    """
    may_replace = is_import if overwrite else None
    check_target(save, may_replace)
    imported = open_import()
    start = time.perf_counter()
    try:
        with new_folder(save, may_replace) as folder:
            num_bytes = 4 * imported.num_parameters
            with progress_bar(num_bytes, "convert") as bar:
                write_import(imported, folder, bar.update)
            seconds = time.perf_counter() - start
            verified = verify(folder) if verify is not None else ""
    except OSError as error:
        raise ConfigError(
            f"{error.filename or save}: {error.strerror}; nothing was written"
        ) from error
    for note in imported.notes:
        print(note)
    print(
        f"{save}: {imported.num_parameters:,} parameters at iteration {imported.iteration:,}, "
        f"{num_bytes / 1e9:.2f} GB fp32, {num_bytes / 1e6 / seconds:,.0f} MB/s{verified}"
    )


def check_model(model: ModelConfig, where: str) -> None:
    """Raise CheckpointError, naming where the configuration stands, for a model that cannot be."""
    try:
        check_bounds(model)
        model.check()
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def is_import(root: Path) -> bool:
    """Tell whether a folder holds a converted checkpoint and nothing that was trained since."""
    if not (root / TRACKER).is_file():
        return False
    try:
        iteration = latest_iteration(root)
        if iteration is None or saved_iterations(root) != [iteration]:
            return False
        return CONVERTED_FROM in read_json_object(checkpoint_folder(root, iteration) / STATE_FILE)
    except CheckpointError:
        return False
