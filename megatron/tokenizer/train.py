"""Training of StarCoder's tokenizer: byte-level BPE on code, digits one by one (StarCoder §5.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron.errors import ConfigError, DataError
from megatron.tokenizer.byte_pair import MAX_IDS
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS

NUM_BYTES = 256
# The time that the package takes grows with the square of a piece: 11 s for 200,000 letters or spaces in a row, hours
# for millions. Nothing is learned from more of them.
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = STARCODER_SPECIAL_TOKENS,
) -> dict[str, Any]:
    """Learn a vocabulary and give the content of its tokenizer.json.

    Ids are the sentinels in their order, the 256 bytes, then merges. The result depends on the texts only, not on
    their order or the number of threads. Fewer merges than asked for are found where the texts are too few: the
    caller looks at the length of the vocabulary. Text is cut where it has no place to be cut for 1,000 characters.
    """
    smallest = len(special_tokens) + NUM_BYTES
    if vocab_size > MAX_IDS:
        raise ConfigError(f"--vocab-size is {vocab_size}; allowed: up to {MAX_IDS}")
    if vocab_size < smallest:
        raise ConfigError(
            f"--vocab-size is {vocab_size}; {len(special_tokens)} sentinels and {NUM_BYTES} bytes need {smallest}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,  # the caller sees the texts go by, and may show it
    )
    num_bytes = 0

    def cleaned() -> Iterable[str]:
        nonlocal num_bytes
        # A space takes the place of a sentinel, so that what surrounds it cannot close up to spell another.
        sentinel = re.compile("|".join(map(re.escape, special_tokens)))
        for text in texts:
            num_bytes += len(text)
            yield from _cut(sentinel.sub(" ", text))

    tokenizer.train_from_iterator(cleaned(), trainer)
    if num_bytes == 0:
        raise DataError("no text to train a tokenizer on; look at --input and --json-key")
    return json.loads(tokenizer.to_str())


def _cut(text: str) -> Iterator[str]:
    """Give a text in parts, each with at most one run that is long."""
    start = 0
    for run in LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]
