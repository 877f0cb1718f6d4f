"""One find of personal data, and the places of a text where it may stand. Knows none of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PREFIX, WORD, IPV4, IPV6 = range(4)  # kinds of places, as csrc/pii_scan.cpp numbers them
Place = tuple[int, int, int]  # kind, begin, end


class Found(NamedTuple):
    """One find: its characters, what it is (EMAIL, KEY, NAME, …) and the rule or model that says so."""

    begin: int
    end: int
    kind: str
    rule: str


class Scanner:
    """Finds places in one pass."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        from megatron.curation import _pii_scan

        self._scan = _pii_scan.PiiScan(prefixes)

    def find(self, text: str) -> list[Place]:
        """Give the places of a text in the order of their begin."""
        return self._scan.find(text.encode("utf-8", "surrogatepass"))
