"""Measures of a text that the filters compare: lines, alphanumeric and alphabetic characters, visible text of HTML.

They equal those of Python's str methods, character by character, at the speed of bytes: of what is ASCII, all but the
wanted is deleted in one call, and only what is not ASCII is asked about. Knows nothing of thresholds.
"""

from __future__ import annotations

import html
from collections.abc import Callable

_ASCII = bytes(range(128))
_HIGH = bytes(range(128, 256))
_NOT_ALNUM = bytes(c for c in _ASCII if not chr(c).isalnum()) + _HIGH
_NOT_ALPHA = bytes(c for c in _ASCII if not chr(c).isalpha()) + _HIGH


def line_lengths(text: str) -> tuple[int, float]:
    """Give the longest line and the mean, in characters, by Python's idea of a line; (0, 0.0) of no line."""
    lengths = list(map(len, text.splitlines()))
    return (max(lengths), sum(lengths) / len(lengths)) if lengths else (0, 0.0)


def alphanumeric_fraction(text: str) -> float:
    """Give the part of the characters that `str.isalnum` accepts."""
    return _fraction(text, _NOT_ALNUM, str.isalnum)


def alphabetic_fraction(text: str) -> float:
    """Give the part of the characters that `str.isalpha` accepts."""
    return _fraction(text, _NOT_ALPHA, str.isalpha)


def _fraction(text: str, others: bytes, accepts: Callable[[str], bool]) -> float:
    if not text:
        return 0.0
    if text.isascii():
        return len(text.encode().translate(None, others)) / len(text)
    data = text.encode("utf-8", "surrogatepass")
    count = len(data.translate(None, others))
    rest = data.translate(None, _ASCII).decode("utf-8", "surrogatepass")
    count += sum(map(accepts, rest))
    return count / len(text)


def visible_length(text: str) -> int:
    """Count the characters of an HTML page that are not markup, script, style or comment; entities count as one."""
    from megatron.curation import _text_scan

    shown = _text_scan.visible_text(text)
    return len(html.unescape(shown) if "&" in shown else shown)


def encoded_runs(text: str) -> tuple[int, int]:
    """Give the sum and the longest of the runs of base64, hexadecimal and `\\u` data, in characters."""
    from megatron.curation import _text_scan

    return _text_scan.encoded_runs(text)
