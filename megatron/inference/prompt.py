"""From text to the ids of a prompt: to be continued, or to be filled in as fill-in-the-middle was trained.

    PSM   <fim_prefix> prefix <fim_suffix> suffix <fim_middle>            the model writes the middle
    SPM   <fim_prefix> <fim_suffix> suffix <fim_middle> prefix            and here, too

Each part is encoded by itself, as `megatron.data.fim` does. Knows nothing of torch.
"""

from __future__ import annotations

import re
from typing import Literal

from megatron.errors import ConfigError
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.special_tokens import FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

Order = Literal["psm", "spm"]
NUM_SENTINELS = 3


def encode_text(tokenizer: Tokenizer, text: str, *, reads_sentinels: bool) -> list[int]:
    """Encode a prompt; if it reads sentinels, those that the text spells become their ids."""
    if not reads_sentinels:
        return tokenizer.tokenize(text)
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
    ids: list[int] = []
    for number, part in enumerate(parts):
        ids += [tokenizer.special_tokens[part]] if number % 2 else tokenizer.tokenize(part)
    return ids


def infilling_ids(
    tokenizer: Tokenizer, prefix: str, suffix: str, order: Order, room: int | None = None
) -> list[int]:
    """Give the ids that ask for what stands between prefix and suffix.

    room: ids that there may be; where there are more, the start of the prefix and the end of the suffix go, the longer
    of the two first. Raises ConfigError for a tokenizer without the sentinels, or no room for them.
    """
    check_infilling(tokenizer)
    specials = tokenizer.special_tokens
    start, middle, end = specials[FIM_PREFIX], specials[FIM_MIDDLE], specials[FIM_SUFFIX]
    before, after = tokenizer.tokenize_batch([prefix, suffix])
    if room is not None:
        room -= NUM_SENTINELS
        if room < 0:
            raise ConfigError(f"there is no room for the {NUM_SENTINELS} sentinels of an infilling")
        num_before = min(len(before), max(room - len(after), room - room // 2))
        before = before[len(before) - num_before :]
        after = after[: room - num_before]
    if order == "spm":
        return [start, end, *after, middle, *before]
    return [start, *before, end, *after, middle]


def check_infilling(tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a tokenizer without the sentinels of fill-in-the-middle."""
    names = (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX)
    missing = [name for name in names if name not in tokenizer.special_tokens]
    if missing:
        raise ConfigError(
            f"the tokenizer {tokenizer.name} has no {' '.join(missing)}: a model that was trained without --fim-rate "
            f"cannot fill in; give --prompt to continue a text"
        )


def infilling_ends(tokenizer: Tokenizer) -> frozenset[int]:
    """Give what ends a middle: any sentinel, since the next document or the next file of a repository begins there."""
    return frozenset(tokenizer.special_tokens.values())
