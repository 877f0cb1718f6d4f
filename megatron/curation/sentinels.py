"""Raw text that spells a sentinel must not become one: a space is put behind its `<`.

In code that keeps `vector<filename>` what it was for a compiler. Knows nothing of formats.
"""

from __future__ import annotations

import re

from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS

SENTINEL = re.compile("|".join(map(re.escape, STARCODER_SPECIAL_TOKENS)))


def neutralise(text: str) -> str:
    """Give a text that spells no sentinel."""
    if "<" not in text:
        return text
    return SENTINEL.sub(lambda match: "< " + match[0][1:], text)


def count_sentinels(text: str) -> int:
    """Count the spellings of sentinels in a text."""
    return len(SENTINEL.findall(text)) if "<" in text else 0
