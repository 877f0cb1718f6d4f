"""Replace personal data (StarCoder §4): the same value by the same replacement, and a file that parsed still parses.

E-mail, keys and passwords become `<EMAIL>`, `<KEY>`, `<PASSWORD>`, IP addresses private ones of their kind. What stands
where a replacement belongs is no personal data, so redacting twice is redacting once. Knows nothing of the rules.
"""

from __future__ import annotations

import ast
import ipaddress
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron.curation.document import Changed, Document, Keep, Stage, Verdict
from megatron.curation.pii_rules import find_all
from megatron.curation.pii_scan import Found
from megatron.data.permutation import keyed_word
from megatron.option_field import check_bounds, option, require

KINDS = ("EMAIL", "IP_ADDRESS", "KEY", "PASSWORD")


@dataclass(frozen=True)
class PiiConfig:
    """What is replaced, and by what."""

    kinds: tuple[str, ...] = option(KINDS, "of these: EMAIL IP_ADDRESS KEY PASSWORD")
    distinct: bool = option(
        False, "number the placeholders of different values, as <EMAIL>, <EMAIL_2>"
    )

    def check(self) -> None:
        """Raise ConfigError for a kind that is none."""
        check_bounds(self)
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        require(not unknown, f"--kinds {' '.join(unknown)}: allowed are {' '.join(KINDS)}")


def pii_stage(config: PiiConfig) -> Stage:
    """Give the stage that redacts."""
    config.check()

    def apply(document: Document) -> Verdict:
        found = [item for item in find_all(document.text) if item.kind in config.kinds]
        if found:
            text, found = redact(document.text, found, config, document.word("language").lower())
        if not found:
            return Keep(document)
        counts = Counter(item.rule for item in found)
        detail = ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items()))
        return Changed(document.with_text(text), "redacted", len(found), detail)

    return Stage("pii", apply, vars(config))


def redact(
    text: str, found: Sequence[Found], config: PiiConfig, language: str = ""
) -> tuple[str, list[Found]]:
    """Replace all that was found; give the text and what was replaced.

    Where a file of Python or JSON would no longer parse, what stands in the way is left: it was code.
    """
    replaced = _replace(text, found, config)
    if not _parses(text, language) or _parses(replaced, language):
        return replaced, list(found)
    kept = [item for item in found if _parses(_replace(text, [item], config), language)]
    replaced = _replace(text, kept, config)
    return (replaced, kept) if _parses(replaced, language) else (text, [])


def _replace(text: str, found: Sequence[Found], config: PiiConfig) -> str:
    given: dict[tuple[str, str], str] = {}
    parts, last = [], 0
    for item in found:
        value = text[item.begin : item.end]
        key = (item.kind, value)
        if key not in given:
            given[key] = _replacement(text, item, value, set(given.values()), config)
        parts += [text[last : item.begin], given[key]]
        last = item.end
    return "".join([*parts, text[last:]])


def _replacement(text: str, item: Found, value: str, taken: set[str], config: PiiConfig) -> str:
    if item.kind == "IP_ADDRESS":
        return _private_address(text, value, taken)
    number = 2
    placeholder = f"<{item.kind}>"
    while config.distinct and (placeholder in taken or placeholder in text):
        placeholder = f"<{item.kind}_{number}>"
        number += 1
    return placeholder


def _private_address(text: str, value: str, taken: set[str]) -> str:
    """Give a private address of the same version that no other value has, nor the text; a function of the value."""
    is_new = ipaddress.ip_address(value).version == 6
    attempt = 0
    while True:
        word = keyed_word("pii", value, attempt)
        if is_new:
            address = str(ipaddress.IPv6Address((0xFD << 120) | word << 40 | (word & 0xFFFF) | 1))
        else:
            address = str(ipaddress.IPv4Address((10 << 24) | (word & 0xFFFFFF)))
        if address not in taken and address not in text:
            return address
        attempt += 1


def _parses(text: str, language: str) -> bool:
    """Tell whether a text is whole Python or JSON; False for other languages, where nothing can be said."""
    try:
        if language == "python":
            with warnings.catch_warnings():  # odd escapes in somebody's code are no news
                warnings.simplefilter("ignore")
                ast.parse(text)
        elif language in ("json", "jupyter"):
            json.loads(text)
        else:
            return False
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
