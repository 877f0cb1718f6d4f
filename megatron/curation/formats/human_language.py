"""In which language people write: of an issue the prose, without code, addresses and logs. By py3langid's model.

Knows nothing of records.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from megatron.option_field import require

MIN_LETTERS = 20  # of prose, below which nothing can be said
MAX_CHARACTERS = 4000  # of prose that are looked at
NOT_PROSE = re.compile(
    r"^(?P<fence>```+|~~~+).*?(?:^(?P=fence)|\Z)"  # blocks of code
    r"|`[^`\n]+`|<[^<>\n]+>|\w{1,20}://[!-~]+"  # code in a line, tags, addresses
    r"|^(?: {4}|\t|>|[^\S\n]+at |[^\S\n]*File \").*$"  # indented, quoted, stack traces
    # Names and paths of code: ASCII, since words may follow without a space; bounds, since a log may have no space.
    r"|[!-~]{0,60}[A-Za-z0-9_)\]][.:/\\=_(]{1,20}[A-Za-z0-9_][!-~]*",
    re.M | re.S,
)


def language_of(text: str) -> str:
    """Give the ISO 639-1 code of the language of a text's prose, "" if there is too little of it."""
    prose = NOT_PROSE.sub(" ", text[: 4 * MAX_CHARACTERS])[:MAX_CHARACTERS]
    if sum(map(str.isalpha, prose)) < MIN_LETTERS:
        return ""
    return _classifier()(" ".join(prose.split()))[0]


def check_languages(codes: Sequence[str]) -> None:
    """Raise ConfigError for codes that are none, and where the model is not installed."""
    odd = [code for code in codes if not re.fullmatch("[a-z]{2}", code)]
    require(not odd, f"--issue-languages {' '.join(odd)}: write codes of two letters, as en")
    is_there = not codes or importlib.util.find_spec("py3langid") is not None
    require(is_there, "--issue-languages needs: pip install py3langid")


@lru_cache(maxsize=1)
def _classifier() -> Callable[[str], tuple[str, float]]:
    """Read the model, which takes a second."""
    from py3langid import classify

    found: Callable[[str], tuple[str, float]] = classify
    return found
