"""The blend that training reads: groups of languages and sources, their tokens and weights, and the files that say them.

Knows nothing of how tokens are counted, nor of how token files are made.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron.curation.run.document import Keep, Stage
from megatron.curation.run.output_folder import write_json, write_whole
from megatron.logging import get_logger
from megatron.option_field import check_bounds, option, require
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

NO_LANGUAGE = "unknown"
ALL = "all"

Key = tuple[str, str]  # language, source


@dataclass(frozen=True)
class MixConfig:
    """Groups and their weights."""

    by: Literal["language", "source", "both"] = option("language", "what makes a group")
    cap: tuple[str, ...] = option(
        (), "most tokens of a group, as json=1e9; all=N for those not named", metavar="GROUP=N"
    )
    min_tokens: int = option(
        0,
        "leave smaller groups out of the blend; a sample of training takes --seq-length tokens and one",
        minimum=0,
    )
    prefix: str = option(
        "data/{group}_text_document",
        "token files of a group; {group} stands for its name",
        metavar="PATTERN",
    )
    split_records: bool = option(False, "write the records of each group to --output/GROUP")
    formatted: bool = option(
        False, "count as preprocess_data.py --formatted writes: sentinels of format as one token"
    )

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        check_bounds(self)
        require("{group}" in self.prefix, f"--prefix {self.prefix}: {{group}} must stand in it")
        odd = [mark for mark in ',:"' if mark in self.prefix]
        require(not odd, f"--prefix {self.prefix}: a blend file cannot hold {' '.join(odd)}")
        self.caps()

    def caps(self) -> dict[str, int]:
        """Give the caps by group."""
        caps = {}
        for item in self.cap:
            name, _, value = item.rpartition("=")
            try:
                caps[name] = int(float(value))
            except (ValueError, OverflowError):
                caps[name] = 0
            require(
                bool(name) and caps[name] > 0,
                f"--cap {item}: write a group and tokens, as json=1e9",
            )
        return caps

    def step(self, tokenizer: Tokenizer) -> Stage:
        """Give what the counts of a shard depend on; caps and names of files come after."""
        settings = {
            "tokenizer": tokenizer.fingerprint(),
            "formatted": self.formatted,
            "split_records": self.by if self.split_records else "",
        }
        return Stage("mix", Keep, settings)

    def group_of(self, key: Key) -> str:
        """Give the group of a language and a source, as part of a file name."""
        parts = {"language": key[:1], "source": key[1:], "both": (key[1], key[0])}[self.by]
        spelled = "-".join(parts).lower().replace("+", "p").replace("#", "sharp")
        return re.sub(r"[^a-z0-9._-]+", "-", spelled).strip("-.") or NO_LANGUAGE


@dataclass
class Count:
    """What there is of something."""

    documents: int = 0
    num_bytes: int = 0
    tokens: int = 0

    def add(self, other: Count) -> None:
        self.documents += other.documents
        self.num_bytes += other.num_bytes
        self.tokens += other.tokens


@dataclass
class Mixture:
    """Counts by language and source, and the weights of groups."""

    config: MixConfig
    counts: dict[Key, Count] = field(default_factory=lambda: defaultdict(Count))
    num_bad: int = 0

    def add(self, counts: Mapping[Key, Count], num_bad: int) -> None:
        """Count what a shard counted."""
        for key, count in counts.items():
            self.counts[key].add(count)
        self.num_bad += num_bad

    def groups(self) -> dict[str, Count]:
        """Give the counts of groups, the largest first."""
        groups: dict[str, Count] = defaultdict(Count)
        for key, count in self.counts.items():
            groups[self.config.group_of(key)].add(count)
        return dict(sorted(groups.items(), key=lambda item: (-item[1].tokens, item[0])))

    def weights(self) -> dict[str, int]:
        """Give the weight of each group that is large enough: its tokens, at most its cap."""
        groups, caps = self.groups(), self.config.caps()
        most = caps.get(ALL)
        limits = {name: caps.get(name, most) for name in groups}
        return {
            name: count.tokens if (limit := limits[name]) is None else min(count.tokens, limit)
            for name, count in groups.items()
            if count.tokens >= max(self.config.min_tokens, 1)
        }

    def describe(self) -> str:
        """Lay counts and weights out in a table, the sum last."""
        weights, groups = self.weights(), self.groups()
        whole, total = sum(weights.values()), Count()
        lines = [
            f"{'group':<28} {'documents':>12} {'MB':>12} {'tokens':>16} {'weight':>16} {'share':>8}"
        ]
        for name, count in groups.items():
            weight = weights.get(name, 0)
            lines.append(_row(name, count, weight, weight / max(whole, 1)))
            total.add(count)
        return "\n".join([*lines, _row("all", total, whole, 1.0)])

    def write(self, output: Path) -> None:
        """Write the table and the two blend files; a cap that no group has is named, the counting was not in vain."""
        groups, weights = self.groups(), self.weights()
        for unused in sorted(self.config.caps().keys() - groups.keys() - {ALL}):
            logger.warning("--cap %s: no such group; there are %s", unused, ", ".join(groups))
        if small := groups.keys() - weights.keys():
            logger.warning("--min-tokens leaves out %s", ", ".join(sorted(small)))
        paths = {name: self.config.prefix.replace("{group}", name) for name in weights}
        whole = max(sum(weights.values()), 1)
        rows = [
            {
                "language": key[0],
                "source": key[1],
                "group": self.config.group_of(key),
                **vars(count),
            }
            for key, count in sorted(self.counts.items())
        ]
        shown = {
            name: {
                **vars(count),
                "weight": weights.get(name, 0),
                "share": weights.get(name, 0) / whole,
            }
            for name, count in groups.items()
        }
        content = {"groups": shown, "counts": rows, "bad_records": self.num_bad}
        write_json(output / "tokens.json", content)
        words = " ".join(f"{weight} {paths[name]}" for name, weight in weights.items())
        write_whole(output / "data_path.txt", f"{words}\n".encode())
        parts = ", ".join(f"{weight} 0:1 {paths[name]}" for name, weight in weights.items())
        write_whole(output / "weighted_split_paths.txt", f'"train: {parts}"\n'.encode())


def _row(name: str, count: Count, weight: int, share: float) -> str:
    megabytes = count.num_bytes / 1e6
    return f"{name:<28} {count.documents:>12,} {megabytes:>12,.1f} {count.tokens:>16,} {weight:>16,} {share:>8.2%}"
