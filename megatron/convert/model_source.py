"""Where a model to predict with comes from: a checkpoint of ours, of any layout, or a folder of transformers.

Both are read as whole tensors by rows, under our names. Nothing is loaded here yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron.checkpoint.reader import CheckpointReader
from megatron.convert.hf_folder import is_hf_folder
from megatron.convert.hf_import import open_hf
from megatron.convert.import_source import ImportSource
from megatron.convert.source import Source
from megatron.errors import CheckpointError
from megatron.options import ModelConfig
from megatron.tokenizer import chat_template
from megatron.tokenizer.chat_template import ChatTemplate
from megatron.tokenizer.interface import Tokenizer


@dataclass(frozen=True)
class ModelSource:
    """One model on disk. tokenizer: None where the folder has none."""

    path: Path
    model: ModelConfig
    tensors: CheckpointReader | ImportSource
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
            source = Source.open(path, iteration)
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
        tensors = ImportSource(imported, path)
        return cls(path, imported.config.model, tensors, imported.tokenizer, dtype, path, None)

    def chat_template(self) -> ChatTemplate | None:
        """Give the template of the conversations that it was trained on; None if it was trained on none."""
        path = self.tokenizer_folder / chat_template.FILE
        return chat_template.read_template(path, str(path)) if path.is_file() else None
