"""How much there is of each language and source, in tokens, and the blend that training reads.

Records are counted by processes, a shard each, and may be written apart by group on the way. Knows nothing of how token
files are made.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from megatron.curation.document import Document
from megatron.curation.options import RunOptions
from megatron.curation.passes import plan
from megatron.curation.record_io import BadRecord, PartSource, RecordWriter, Source
from megatron.data.formatted import (
    SENTINELS,
    check_sentinels,
    encode_formatted,
    why_not_formatted,
)
from megatron.data.ordered_map import Workers
from megatron.data.publish import publish, sync
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.option_field import check_bounds, option, require
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

BATCH_BYTES = 1 << 20  # of text, encoded at a time
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

    def groups(self) -> dict[str, Count]:
        """Give the counts of groups, the largest first."""
        groups: dict[str, Count] = defaultdict(Count)
        for key, count in self.counts.items():
            groups[self.config.group_of(key)].add(count)
        return dict(sorted(groups.items(), key=lambda item: (-item[1].tokens, item[0])))

    def weights(self) -> dict[str, int]:
        """Give the weight of each group: its tokens, at most its cap."""
        groups, caps = self.groups(), self.config.caps()
        most = caps.get(ALL)
        limits = {name: caps.get(name, most) for name in groups}
        return {
            name: count.tokens if (limit := limits[name]) is None else min(count.tokens, limit)
            for name, count in groups.items()
            if count.tokens
        }

    def describe(self) -> str:
        """Lay counts and weights out in a table, the sum last."""
        weights, groups = self.weights(), self.groups()
        whole = sum(weights.values())
        lines = [
            f"{'group':<28} {'documents':>12} {'MB':>12} {'tokens':>16} {'weight':>16} {'share':>8}"
        ]
        for name, count in groups.items():
            weight = weights.get(name, 0)
            lines.append(_row(name, count, weight, weight / max(whole, 1)))
        total = Count()
        for count in groups.values():
            total.add(count)
        return "\n".join([*lines, _row("all", total, whole, 1.0)])

    def write(self, output: Path) -> None:
        """Write the table and the two blend files; a cap that no group has is named, the counting was not in vain."""
        groups = self.groups()
        for unused in sorted(self.config.caps().keys() - groups.keys() - {ALL}):
            logger.warning("--cap %s: no such group; there are %s", unused, ", ".join(groups))
        weights = self.weights()
        named = [
            (weight, self.config.prefix.replace("{group}", name))
            for name, weight in weights.items()
        ]
        whole = sum(weights.values())
        rows = [
            {
                "language": language,
                "source": source,
                "group": self.config.group_of((language, source)),
                **vars(count),
            }
            for (language, source), count in sorted(self.counts.items())
        ]
        shown = {
            name: {
                **vars(count),
                "weight": (weight := weights.get(name, 0)),
                "share": weight / max(whole, 1),
            }
            for name, count in groups.items()
        }
        content = {"groups": shown, "counts": rows, "bad_records": self.num_bad}
        _write(output / "tokens.json", orjson.dumps(content, option=orjson.OPT_INDENT_2))
        _write(
            output / "data_path.txt", (" ".join(f"{w} {path}" for w, path in named) + "\n").encode()
        )
        parts = ", ".join(f"{weight} 0:1 {path}" for weight, path in named)
        _write(output / "weighted_split_paths.txt", f'"train: {parts}"\n'.encode())


def _row(name: str, count: Count, weight: int, share: float) -> str:
    megabytes = count.num_bytes / 1e6
    return f"{name:<28} {count.documents:>12,} {megabytes:>12,.1f} {count.tokens:>16,} {weight:>16,} {share:>8.2%}"


class _ShardCounter:
    """Counts one shard; runs in a worker."""

    def __init__(self, config: MixConfig, tokenizer: Tokenizer, output: Path) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._output = output

    def __call__(self, task: tuple[int, Source, str]) -> tuple[dict[Key, Count], int]:
        number, source, name = task
        counts: dict[Key, Count] = defaultdict(Count)
        writers: dict[str, tuple[RecordWriter, Path, Path]] = {}
        batch: list[tuple[Key, Document]] = []
        size = num_bad = 0
        for document in source.read():
            if isinstance(document, BadRecord) or self._is_not_formatted(document):
                num_bad += 1
                continue
            key = (document.word("language").lower() or NO_LANGUAGE, name)
            if self._config.split_records:
                self._write(writers, number, key, document)
            batch.append((key, document))
            size += len(document.text)
            if size >= BATCH_BYTES:
                self._count(batch, counts)
                batch, size = [], 0
        self._count(batch, counts)
        for writer, temporary, path in writers.values():
            writer.close()
            publish([(temporary, path)])
        return dict(counts), num_bad

    def _is_not_formatted(self, document: Document) -> bool:
        places = document.metadata.get(SENTINELS)
        return self._config.formatted and bool(why_not_formatted(document.text, places))

    def _count(self, batch: Sequence[tuple[Key, Document]], counts: dict[Key, Count]) -> None:
        if not batch:
            return
        texts = [document.text.encode() for _, document in batch]
        if self._config.formatted:
            places = [document.metadata[SENTINELS] for _, document in batch]
            _, sizes = encode_formatted(self._tokenizer, texts, places)
        else:
            _, sizes = self._tokenizer.encode_batch(texts)
        for (key, _), text, num_tokens in zip(batch, texts, sizes.tolist(), strict=True):
            counts[key].add(Count(1, len(text), num_tokens + 1))  # and the end of document

    def _write(
        self,
        writers: dict[str, tuple[RecordWriter, Path, Path]],
        number: int,
        key: Key,
        document: Document,
    ) -> None:
        group = self._config.group_of(key)
        if group not in writers:
            folder = self._output / group
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number:05d}.jsonl.zst"
            temporary = path.with_name(f".{path.name}.tmp")
            writers[group] = (RecordWriter(temporary, "jsonl.zst"), temporary, path)
        writers[group][0].write(document)


def mix(
    options: RunOptions,
    config: MixConfig,
    tokenizer: Tokenizer,
    *,
    on_bytes: Callable[[int], object] = lambda size: None,
) -> Mixture:
    """Count all input and write what training reads to the output folder. Forks; the same for any number of workers."""
    config.check()
    if config.formatted:
        check_sentinels(tokenizer, "--formatted")
    output = options.folder
    if output.is_dir() and any(output.iterdir()) and not options.overwrite:
        raise DataError(f"--output {output} is not empty; name another folder, or add --overwrite")
    sources = plan(options)
    if not sources:
        raise DataError(f"nothing to read in {', '.join(options.input)}")
    output.mkdir(parents=True, exist_ok=True)
    tasks = [
        (number, source, _name(source, options.input)) for number, source in enumerate(sources)
    ]
    mixture = Mixture(config)
    with Workers(
        _ShardCounter(config, tokenizer, output), min(options.workers, len(tasks))
    ) as pool:
        for task, (counts, num_bad) in zip(tasks, pool.map(tasks), strict=True):
            _merge(mixture.counts, counts)
            mixture.num_bad += num_bad
            on_bytes(task[1].num_bytes)
    mixture.write(output)
    return mixture


def _merge(into: dict[Key, Count], counts: Mapping[Key, Count]) -> None:
    for key, count in counts.items():
        into[key].add(count)


def _name(source: Source, inputs: Sequence[str]) -> str:
    """Name the source of a shard: the input folder that holds its file, or the file without its endings."""
    assert isinstance(source, PartSource), "plan() cuts files into parts"
    path = source.part.path
    if str(path) in inputs:
        return path.name.partition(".")[0]
    return path.resolve().parent.name


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        sync(file)
    publish([(temporary, path)])
