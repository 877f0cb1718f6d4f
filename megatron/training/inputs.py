"""What a run reads before any process group or model exists: tokenizer and datasets.

Most mistakes show here, in a second, on a laptop: `--dry-run` ends after this. Knows nothing of torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from megatron.config import Config
from megatron.data.build import Datasets, build_datasets
from megatron.errors import ConfigError
from megatron.optimizer.schedule import Schedule
from megatron.options import pad_vocab_size
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.training.contents import Contents


@dataclass(frozen=True)
class Inputs:
    """The options of a run, with what follows from files filled in, and what they name on disk."""

    config: Config
    tokenizer: Tokenizer
    datasets: Datasets
    contents: Contents


def open_inputs(config: Config, world_size: int) -> Inputs:
    """Check every option and open every input. Raises ConfigError or DataError; changes nothing."""
    config.check(world_size)
    batch_size = config.global_batch_size(config.parallel.data_parallel_size(world_size))
    Schedule.create(config.optimizer, config.training, batch_size)  # raises if it cannot be made
    _check_outputs(config)
    tokenizer = build_tokenizer(config.tokenizer)
    model = replace(
        config.model,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=pad_vocab_size(
            tokenizer.vocab_size,
            config.model.make_vocab_size_divisible_by,
            config.parallel.tensor_model_parallel_size,
        ),
    )
    datasets = build_datasets(config.data, tokenizer, seed=config.training.seed)
    data = replace(config.data, exclude_documents_sha256=datasets.excluded_sha256)
    contents = Contents(tokenizer.fingerprint(), datasets.train_content, datasets.eval_content)
    return Inputs(replace(config, model=model, data=data), tokenizer, datasets, contents)


def _check_outputs(config: Config) -> None:
    """Raise ConfigError unless every place that the run writes to can be written. Creates nothing."""
    folders = {
        "--save": config.checkpoint.save,
        "--tensorboard-dir": config.logging.tensorboard_dir,
        "--structured-logs-dir": config.logging.structured_logs_dir,
    }
    for flag, folder in folders.items():
        if folder is None:
            continue
        existing = next(
            path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists()
        )
        if not existing.is_dir():
            raise ConfigError(f"{flag} {folder}: {existing} is a file; give a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{flag} {folder}: {existing} cannot be written to (its permissions, or a disk mounted read-only)"
            )
    if config.logging.wandb_project_name is not None and find_spec("wandb") is None:
        raise ConfigError("--wandb-project-name needs the wandb package: pip install wandb")
