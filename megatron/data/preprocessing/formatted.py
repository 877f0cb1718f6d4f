"""Text with sentinels in it: which of those that it spells are sentinels is said beside it, never by the spelling.

`tools/curate.py format` writes records `{"text", "sentinels": [0, 23, …]}`: the bytes of the text's UTF-8 where the
sentinels begin that it put there. All else is text, whatever it spells, so nothing in a file can forge one, and the
file's own text needs no change. Knows nothing of files, nor of what is formatted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron.errors import ConfigError
from megatron.tokenizer.interface import EncodedBatch, Tokenizer
from megatron.tokenizer.special_tokens import EOD, FIM_TOKENS, STARCODER_SPECIAL_TOKENS

SENTINELS = "sentinels"  # the key of the places
# Those of formats: documents are ended by whoever writes them, and cut in three when they are trained on.
FORMAT_TOKENS = tuple(
    token for token in STARCODER_SPECIAL_TOKENS if token not in (EOD, *FIM_TOKENS)
)
_PATTERN = "|".join(map(re.escape, FORMAT_TOKENS))
_IN_TEXT, _IN_BYTES = re.compile(_PATTERN), re.compile(_PATTERN.encode())


def check_sentinels(tokenizer: Tokenizer, flag: str) -> None:
    """Raise ConfigError unless a tokenizer has every sentinel of formats; flag: what asks for them."""
    missing = [token for token in FORMAT_TOKENS if token not in tokenizer.special_tokens]
    if missing:
        raise ConfigError(
            f"{flag} needs the sentinels that tools/curate.py format writes, and the tokenizer {tokenizer.name} has no "
            f"{' '.join(missing)}; train one with tools/train_tokenizer.py"
        )


def why_not_formatted(text: str, places: Any) -> str | None:
    """Say why a text cannot have its sentinels at these places; None if it has."""
    if not isinstance(places, list):
        return f"no list under {SENTINELS!r}: curate.py format, which writes it, was not the last to change the text"
    end = 0
    data = _as_read(text) if places else text
    for place in places:
        if type(place) is not int or place < end:
            return f"{SENTINELS!r} is no list of places in rising order"
        found = _sentinel_at(data, place)
        if found is None:
            return f"{SENTINELS!r} names a place where none begins: the text was changed"
        end = place + len(found)
    return None


def encode_formatted(
    tokenizer: Tokenizer, texts: Sequence[str | bytes], places: Sequence[Sequence[int]]
) -> EncodedBatch:
    """Encode texts, or their UTF-8, in which sentinels begin at these bytes; `why_not_formatted` has checked them.

    What stands between two sentinels is encoded by itself, as the `tokenizers` package does around special tokens.
    """
    if not any(places):
        return tokenizer.encode_batch(texts)
    pieces: list[str | bytes] = []
    firsts, sentinels, is_last = [], [], []
    for text, at in zip(texts, places, strict=True):
        data = _as_read(text) if at else text
        firsts.append(len(pieces))
        start = 0
        for place in at:
            name = _sentinel_at(data, place)
            assert name is not None
            sentinels.append(tokenizer.special_tokens[name])
            pieces.append(data[start:place])
            start = place + len(name)
        pieces.append(data[start:])
        is_last += [False] * len(at) + [True]
    ids, sizes = tokenizer.encode_batch(pieces)
    ends = np.cumsum(sizes)[~np.array(is_last)]
    sizes = np.add.reduceat(sizes, firsts) + np.array([*map(len, places)])
    return np.insert(ids, ends, sentinels), sizes


def _as_read(text: str | bytes) -> str | bytes:
    """Give a text so that its bytes can be counted: as it is if each character is one, else as UTF-8."""
    return text if isinstance(text, bytes) or text.isascii() else text.encode()


def _sentinel_at(data: str | bytes, place: int) -> str | None:
    if isinstance(data, bytes):
        match = _IN_BYTES.match(data, place)
        return match[0].decode() if match else None
    found = _IN_TEXT.match(data, place)
    return found[0] if found else None
