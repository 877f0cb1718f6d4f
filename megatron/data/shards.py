"""Which share of the input one node of a cluster takes, and how the datasets of all shares are named and ordered.

Knows nothing of what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    """Put the shards of one dataset in order; DataError if one is missing, doubled, or of another division."""
    found: dict[Shard, Path] = {}
    for prefix in prefixes:
        split = split_name(prefix)
        assert split is not None
        if split[1] in found:
            raise DataError(f"{prefix} and {found[split[1]]} are the same shard; leave one out")
        found[split[1]] = prefix
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise DataError(
            f"{prefixes[0]} is one of {', '.join(map(str, counts[:-1]))} shards, {prefixes[-1]} one of {counts[-1]}; "
            "merge those of one run of tools/preprocess_data.py"
        )
    wanted = [Shard(number, counts[0]) for number in range(1, counts[0] + 1)]
    missing = [f"{shard.number}/{shard.count}" for shard in wanted if shard not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {counts[0]} shards beside {prefixes[0]} are missing: {', '.join(missing[:5])}"
            f"{' …' * (len(missing) > 5)}; make them with tools/preprocess_data.py --shard {missing[0]}"
        )
    return [found[shard] for shard in wanted]


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Give a key that sorts names as people count: part2 before part10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in pieces]
