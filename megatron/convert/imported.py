"""A model from elsewhere, in our names, and how it becomes the folder of a run.

Each importer describes the tensors; here they are streamed into a checkpoint of weights alone, as Megatron's
`release` is one: a run starts from it at iteration 0. Knows nothing of other formats.
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
from megatron.checkpoint.writer import CheckpointWriter
from megatron.config import Config, to_json
from megatron.convert.output_folder import check_target, new_folder
from megatron.convert.source import CONVERTED_FROM, GENERATION_CONFIG
from megatron.errors import CheckpointError, ConfigError
from megatron.option_field import check_bounds
from megatron.options import ModelConfig
from megatron.progress import progress_bar
from megatron.tokenizer.interface import Tokenizer


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
