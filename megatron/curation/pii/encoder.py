"""The model that training begins with: an encoder's folder with a new head for tokens, or a small one of our own."""

from __future__ import annotations

from typing import Any

from megatron.curation.pii.model import Tokens, libraries
from megatron.curation.pii.spans import tags_of
from megatron.curation.pii.train_options import PiiTrainConfig
from megatron.errors import DataError

ENDS = ("<cls>", "<sep>", "<pad>", "<mask>")  # StarEncoder's
NEW_STD = 0.05  # of new weights; with rotary positions it finds its way in a hundred steps, BERT at 0.02 does not


def begin_model(config: PiiTrainConfig) -> tuple[Any, Tokens]:
    """Give the model that training begins with, and its tokenizer."""
    _, transformers = libraries()
    tags = tags_of(config.labels)
    names = {
        "num_labels": len(tags),
        "id2label": dict(enumerate(tags)),
        "label2id": {tag: number for number, tag in enumerate(tags)},
    }
    try:
        if config.encoder is not None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                config.encoder, local_files_only=True
            )
            model = transformers.AutoModelForTokenClassification.from_pretrained(
                config.encoder, local_files_only=True, ignore_mismatched_sizes=True, **names
            )
            grown = _with_ends(tokenizer)
            if grown:
                model.resize_token_embeddings(len(tokenizer))
            return model, Tokens(tokenizer, config.encoder)
        assert config.tokenizer_file is not None
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=config.tokenizer_file)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{config.encoder or config.tokenizer_file} cannot be loaded: {error}"
        ) from error
    _with_ends(tokenizer)
    tokenizer.model_max_length = config.window
    shape = transformers.RoFormerConfig(
        vocab_size=len(tokenizer),
        embedding_size=config.hidden_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.window,
        initializer_range=NEW_STD,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=tokenizer.pad_token_id,
        **names,
    )
    model = transformers.RoFormerForTokenClassification(shape)
    return model, Tokens(tokenizer, config.tokenizer_file)


def _with_ends(tokenizer: Any) -> bool:
    """Add the tokens that windows begin and end with where a tokenizer has none; tell whether any was added."""
    names = ("cls_token", "sep_token", "pad_token", "mask_token")
    missing = {
        name: token
        for name, token in zip(names, ENDS, strict=True)
        if getattr(tokenizer, name) is None
    }
    return bool(missing) and tokenizer.add_special_tokens(missing) > 0
