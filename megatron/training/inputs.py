"""What a run reads before any process group or model exists: tokenizer and datasets.

Most mistakes show here, in a second, on a laptop: `--dry-run` ends after this. Knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron.config import Config
from megatron.data.build import Datasets, build_datasets
from megatron.options import pad_vocab_size
from megatron.tokenizer.tokenizer import Tokenizer, build_tokenizer


@dataclass(frozen=True)
class Inputs:
    """The options of a run, with the vocabulary filled in, and what they name on disk."""

    config: Config
    tokenizer: Tokenizer
    datasets: Datasets


def open_inputs(config: Config, world_size: int) -> Inputs:
    """Check every option and open every input. Raises ConfigError or DataError; changes nothing."""
    config.check(world_size)
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
    return Inputs(replace(config, model=model), tokenizer, datasets)
