"""Texts put together from sentinels and raw text, and where the sentinels are: raw text that spells one is none.

Knows nothing of formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS

SENTINEL = re.compile("|".join(map(re.escape, STARCODER_SPECIAL_TOKENS)))
# of a surrogate pair; no character, and nothing can be encoded with it
HALF = re.compile("[\ud800-\udfff]")


class Sentinel(str):
    """A part of a text that is a sentinel, not its spelling."""

    __slots__ = ()


@dataclass(frozen=True)
class Marked:
    """A text, and the bytes of its UTF-8 where sentinels begin."""

    text: str
    places: tuple[int, ...]


def join(parts: Iterable[str], *, neutral: bool = False) -> Marked:
    """Put parts together; neutral: raw parts get a space where they spell a sentinel."""
    texts, places, size = [], [], 0
    for part in parts:
        if isinstance(part, Sentinel):
            places.append(size)
        else:
            part = neutralise(part) if neutral else part
            if not part.isascii():
                part = HALF.sub("\ufffd", part)
        texts.append(part)
        size += len(part) if part.isascii() else len(part.encode())
    return Marked("".join(texts), tuple(places))


def neutralise(text: str) -> str:
    """Put a space behind the `<` of what spells a sentinel; in code `vector< filename>` is what it was."""
    if "<" not in text:
        return text
    return SENTINEL.sub(lambda match: "< " + match[0][1:], text)
