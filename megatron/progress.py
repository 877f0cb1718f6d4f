"""How far long work has come, for people who watch it: on stderr, if that is a terminal."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


def byte_bar(total: int, what: str) -> tqdm[NoReturn]:
    """Give a bar of bytes, to be told of those that are done by `update`. Use as a context manager."""
    return tqdm(total=total, unit="B", unit_scale=True, disable=None, desc=what)
