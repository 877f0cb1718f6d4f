"""Options of a run that is only planned: data need not be there, nor a tokenizer. No torch."""

from __future__ import annotations

from dataclasses import replace

from megatron.config import Config
from megatron.errors import ConfigError
from megatron.options import TokenizerConfig, pad_vocab_size

TOKENIZER_FILES = ("tokenizer_file", "tokenizer_model", "vocab_file", "merge_file")


def fill_in(config: Config) -> Config:
    """Fill in the size of the vocabulary, and for a check to find, data and --save: they need not be there."""
    data = config.data
    given = (data.data_path, data.train_data_path, data.train_weighted_split_paths)
    if not any(given) and data.train_weighted_split_paths_path is None:
        data = replace(data, train_data_path=("unread",))
    model = replace(config.model, vocab_size=vocab_size(config.tokenizer))
    checkpoint = replace(config.checkpoint, save=config.checkpoint.save or "unwritten")
    return replace(config, data=data, model=model, checkpoint=checkpoint)


def vocab_size(config: TokenizerConfig) -> int:
    """Give the number of ids: the tokenizer's if its files are named, else --vocab-size."""
    is_named = any(getattr(config, name) is not None for name in TOKENIZER_FILES)
    if is_named or config.tokenizer_type == "NullTokenizer":
        from megatron.tokenizer.tokenizer import build_tokenizer

        return build_tokenizer(config).vocab_size
    if config.vocab_size is None or config.vocab_size < 1:
        raise ConfigError(
            "the vocabulary is not known: give --tokenizer-file, or --vocab-size N above 0 in its place"
        )
    return config.vocab_size


def complete(config: Config, world_size: int) -> Config:
    """Check the options as a start would and pad the vocabulary. Raises ConfigError."""
    config.check(world_size)
    padded = pad_vocab_size(
        config.model.vocab_size,
        config.model.make_vocab_size_divisible_by,
        config.parallel.tensor_model_parallel_size,
    )
    return replace(config, model=replace(config.model, padded_vocab_size=padded))
