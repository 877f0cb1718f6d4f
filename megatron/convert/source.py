"""Where a model comes from: a checkpoint of a run, of any layout, or to predict with also a folder of transformers.

Nothing is loaded here yet: tensors are read whole, by rows, under our names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.checkpoint.files import read_json_object
from megatron.checkpoint.layout import find_checkpoint
from megatron.checkpoint.reader import CheckpointReader
from megatron.config import Config, from_json
from megatron.convert.hf_folder import is_hf_folder
from megatron.convert.hf_import import open_hf
from megatron.convert.imported import GENERATION_CONFIG, ImportReader
from megatron.errors import CheckpointError, ConfigError, DataError
from megatron.logging import get_logger
from megatron.metrics_file import METRICS_FILE, LossLine, read_losses
from megatron.option_field import check_bounds
from megatron.options import ModelConfig
from megatron.tokenizer import chat_template
from megatron.tokenizer.chat_template import ChatTemplate
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer

logger = get_logger(__name__)


@dataclass(frozen=True)
class RunSource:
    """One checkpoint of a run, the run's options, and the tokenizer beside it."""

    reader: CheckpointReader
    config: Config
    tokenizer: Tokenizer | None
    tokenizer_folder: Path

    @classmethod
    def open(cls, path: Path, iteration: int | None = None) -> RunSource:
        """Open a run's folder or one of its checkpoints. Raises CheckpointError, or DataError for its tokenizer."""
        reader = CheckpointReader.open(find_checkpoint(path, iteration))
        config = _config_of(reader)
        folder = reader.folder.parent / "tokenizer"
        return cls(reader, config, _tokenizer_of(config, folder), folder)

    @property
    def eod(self) -> int:
        """The id that ends a document; 0 as in StarCoder's vocabulary where no tokenizer was kept."""
        return self.tokenizer.eod if self.tokenizer is not None else 0

    @property
    def generation_config(self) -> dict[str, Any]:
        """What the run was converted with, empty for one that began here."""
        path = self.reader.folder.parent / GENERATION_CONFIG
        return read_json_object(path) if path.is_file() else {}

    def chat_template(self) -> ChatTemplate | None:
        """Give the template of the conversations that it was trained on; None if it was trained on none."""
        return _template_in(self.tokenizer_folder)

    def losses(self) -> list[LossLine]:
        """Give the losses of the run up to this checkpoint, none where its metrics.jsonl is missing or damaged."""
        path = self.reader.folder.parent / METRICS_FILE
        if not path.is_file():
            return []
        try:
            lines = list(read_losses(path))
        except DataError as error:
            logger.warning("%s; the export says nothing of losses", error)
            return []
        return [line for line in lines if line.iteration <= self.reader.iteration]


@dataclass(frozen=True)
class ModelSource:
    """One model on disk. tokenizer: None where the folder has none."""

    path: Path
    model: ModelConfig
    tensors: CheckpointReader | ImportReader
    tokenizer: Tokenizer | None
    dtype: torch.dtype  # that it was trained or stored in
    tokenizer_folder: Path
    iteration: int | None  # of a checkpoint of ours

    @classmethod
    def open(
        cls, path: Path, iteration: int | None = None, *, accepts_exact_gelu: bool = False
    ) -> ModelSource:
        """Open a run's folder, one of its checkpoints, or a folder of GPTBigCode or Starcoder2.

        Raises CheckpointError for what is neither or damaged, DataError for a broken tokenizer.
        """
        if not is_hf_folder(path):
            source = RunSource.open(path, iteration)
            dtype = getattr(torch, source.config.precision.compute_dtype)
            return cls(
                path,
                source.config.model,
                source.reader,
                source.tokenizer,
                dtype,
                source.tokenizer_folder,
                source.reader.iteration,
            )
        if iteration is not None:
            raise CheckpointError(
                f"{path} is a folder of transformers, which has no iterations; leave --iteration out"
            )
        imported = open_hf(path, accepts_exact_gelu=accepts_exact_gelu)
        dtype = getattr(torch, imported.config.precision.compute_dtype)
        tensors = ImportReader(imported, path)
        return cls(path, imported.config.model, tensors, imported.tokenizer, dtype, path, None)

    def chat_template(self) -> ChatTemplate | None:
        """Give the template of the conversations that it was trained on; None if it was trained on none."""
        return _template_in(self.tokenizer_folder)


def _config_of(reader: CheckpointReader) -> Config:
    path = reader.folder / "config.json"
    try:
        config = from_json(reader.config)
        check_bounds(config.model)
        config.model.check()
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not 0 < config.model.vocab_size <= config.model.padded_vocab_size:
        raise CheckpointError(
            f"{path} has a vocabulary of {config.model.vocab_size} in {config.model.padded_vocab_size} "
            f"rows; it was not written by a training run"
        )
    return config


def _tokenizer_of(config: Config, folder: Path) -> Tokenizer | None:
    """Rebuild the tokenizer that the run kept, None for one without files or a run that kept none."""
    options = config.tokenizer
    if options.tokenizer_type == "NullTokenizer":
        return build_tokenizer(options)
    if (folder / "tokenizer.json").is_file():
        if options.tokenizer_type == "HuggingFaceTokenizer":
            changes = {"tokenizer_model": str(folder)}
        else:
            # Whatever type it was, the file that it saved has its sentinels in.
            changes = {
                "tokenizer_type": "TokenizerFromFile",
                "tokenizer_file": str(folder / "tokenizer.json"),
            }
    elif (folder / "tokenizer.model").is_file():
        changes = {"tokenizer_model": str(folder / "tokenizer.model")}
    else:
        return None
    tokenizer = build_tokenizer(dataclasses.replace(options, **changes))  # type: ignore[arg-type]
    if tokenizer.vocab_size != config.model.vocab_size:
        raise CheckpointError(
            f"{folder} has {tokenizer.vocab_size} ids and the model was trained with "
            f"{config.model.vocab_size}; put the run's own tokenizer there"
        )
    return tokenizer


def _template_in(folder: Path) -> ChatTemplate | None:
    path = folder / chat_template.FILE
    return chat_template.read_template(path, str(path)) if path.is_file() else None
