"""Which share of the input one node of a cluster takes, and how the datasets of all shares are named and ordered.

Knows nothing of what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.errors import ConfigError, DataError

NAME = re.compile(r"(.+)_(\d{5,})-of-(\d{5,})")


@dataclass(frozen=True)
class Shard:
    """Share `number` (from 1) of `count`."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "3/8"; raise ConfigError for anything else."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"--shard is {text!r}; give its number and how many there are, from 1/8 to 8/8"
            )
        return cls(int(match[1]), int(match[2]))

    def name(self, prefix: str) -> str:
        """Name the dataset of this share of a dataset."""
        return f"{prefix}_{self.number:05d}-of-{self.count:05d}"


def split_name(prefix: Path) -> tuple[Path, Shard] | None:
    """Give the whole's prefix and the shard, if a prefix is named as one."""
    match = NAME.fullmatch(prefix.name)
    if match is None:
        return None
    return prefix.with_name(match[1]), Shard(int(match[2]), int(match[3]))


def order_shards(prefixes: Sequence[Path]) -> list[Path]:
    """Put the shards of one dataset in order; DataError if one is missing, doubled, or of another dataset."""
    found: dict[int, Path] = {}
    names = [split_name(prefix) for prefix in prefixes]
    counts = sorted({shard.count for _, shard in filter(None, names)})
    if len(counts) != 1 or None in names:
        raise DataError(
            f"{prefixes[0]} and others are shards of different datasets (of {_join(counts)} shards); merge the "
            "shards of one at a time"
        )
    for prefix, (_, shard) in zip(prefixes, filter(None, names), strict=True):
        if shard.number in found:
            raise DataError(
                f"{prefix} and {found[shard.number]} are both shard {shard.number} of {shard.count}; leave one out"
            )
        found[shard.number] = prefix
    missing = [number for number in range(1, counts[0] + 1) if number not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {counts[0]} shards of {names[0][0]} are missing, among them "  # type: ignore[index]
            f"{_join(missing[:5])}; run tools/preprocess_data.py --shard {missing[0]}/{counts[0]} and so on"
        )
    return [found[number] for number in sorted(found)]


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Give a key that sorts names as people count: part2 before part10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
