"""The SHA-256 of files, and the list of them that `sha256sum -c` reads. Knows nothing of what the files are.

A dataset has such a list beside it, a checkpoint has one inside.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

PIECE = 4 << 20  # read at a time; fits a core's caches: what was read is still there to be hashed

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


class ChecksumListError(ValueError):
    """A text is no list of checksums: the line, from 1, that is none; None where the text is cut short."""

    def __init__(self, line: int | None) -> None:
        super().__init__("cut short" if line is None else f"line {line} is no checksum of a file")
        self.line = line


def hash_file(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Give a file's SHA-256 in hex. on_bytes is told of the bytes as they are read. Raises OSError."""
    sha256, block = hashlib.sha256(), memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            sha256.update(block[:count])
            if on_bytes is not None:
                on_bytes(count)
    return sha256.hexdigest()


def format_checksums(digests: Mapping[str, str]) -> str:
    """Give the list of {name of a file beside it: its SHA-256}."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def parse_checksums(text: str) -> dict[str, str]:
    """Read a list: {name of a file beside it: its SHA-256}. Raises ChecksumListError."""
    if not text.endswith("\n"):
        raise ChecksumListError(None)
    digests: dict[str, str] = {}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None or "/" in match[2] or match[2] in digests:
            raise ChecksumListError(number)
        digests[match[2]] = match[1]
    return digests
