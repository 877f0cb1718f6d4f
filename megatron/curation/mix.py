"""How much there is of each language and source, in tokens, and the blend that training reads.

Records are counted a shard at a time, and may be written apart by group on the way; the counts of a shard are kept, so
that a run which was interrupted goes on, and other caps need no counting. Knows nothing of how token files are made.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megatron.curation.run.document import Document, Keep, Stage
from megatron.curation.run.engine import pool_of
from megatron.curation.run.options import RunOptions
from megatron.curation.run.output_folder import (
    aside,
    claim,
    digest,
    disk_errors,
    fingerprint_of,
    read_counts,
    remove_leftovers,
    write_json,
    write_whole,
)
from megatron.curation.run.passes import plan
from megatron.curation.run.record_io import BadRecord, PartSource, RecordWriter, Source
from megatron.data.preprocessing.formatted import (
    SENTINELS,
    check_sentinels,
    encode_formatted,
    why_not_formatted,
)
from megatron.data.publish import open_locked, publish
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.option_field import check_bounds, option, require
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

BATCH_BYTES = 1 << 20  # of text, encoded at a time
NO_LANGUAGE = "unknown"
ALL = "all"
COUNTS = ".counts"  # folder of the counts of each shard; no group has such a name

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
        if small := groups.keys() - weights.keys():
            logger.warning("--min-tokens leaves out %s", ", ".join(sorted(small)))
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
        write_json(output / "tokens.json", content)
        write_whole(
            output / "data_path.txt", (" ".join(f"{w} {path}" for w, path in named) + "\n").encode()
        )
        parts = ", ".join(f"{weight} 0:1 {path}" for weight, path in named)
        write_whole(output / "weighted_split_paths.txt", f'"train: {parts}"\n'.encode())


def _row(name: str, count: Count, weight: int, share: float) -> str:
    megabytes = count.num_bytes / 1e6
    return f"{name:<28} {count.documents:>12,} {megabytes:>12,.1f} {count.tokens:>16,} {weight:>16,} {share:>8.2%}"


@dataclass(frozen=True)
class _Task:
    number: int
    source: Source
    name: str  # of what the shard is part of
    fingerprint: str


_Counts = tuple[dict[Key, Count], int]  # and of records that are none


class _ShardCounter:
    """Counts one shard; runs in a worker.

    What it counted appears last, and says that the shard is done.
    """

    def __init__(self, config: MixConfig, tokenizer: Tokenizer, output: Path) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._output = output

    def __call__(self, task: _Task) -> _Counts:
        with disk_errors(self._output), contextlib.ExitStack() as stack:
            counts, num_bad = self._run(task, stack)
            rows = [[*key, *vars(count).values()] for key, count in sorted(counts.items())]
            content = {"fingerprint": task.fingerprint, "bad": num_bad, "counts": rows}
            write_json(_counts_path(self._output, task.number), content)
        return counts, num_bad

    def _run(self, task: _Task, stack: contextlib.ExitStack) -> _Counts:
        number, source, name = task.number, task.source, task.name
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
                writer = self._writer(writers, number, key, stack)
                writer.write(document)
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

    def _writer(
        self,
        writers: dict[str, tuple[RecordWriter, Path, Path]],
        number: int,
        key: Key,
        stack: contextlib.ExitStack,
    ) -> RecordWriter:
        group = self._config.group_of(key)
        if group not in writers:
            folder = self._output / group
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{number:05d}.jsonl.zst"
            temporary = aside(path)
            writer = stack.enter_context(RecordWriter(temporary, "jsonl.zst"))
            writers[group] = (writer, temporary, path)
        return writers[group][0]


def mix(
    options: RunOptions,
    config: MixConfig,
    tokenizer: Tokenizer,
    *,
    command: Sequence[str] = (),
    on_bytes: Callable[[int], object] = lambda size: None,
) -> Mixture:
    """Count all input and write what training reads to the output folder; the same for any number of workers.

    Goes on with a run that was interrupted. Raises DataError if the folder holds something else, or the disk is full.
    """
    config.check()
    if config.formatted:
        check_sentinels(tokenizer, "--formatted")
    output = options.folder
    # Whatever their length: preprocess_data.py, which reads the same records, knows no cap either.
    sources: Sequence[Source] = [
        replace(source, max_document_bytes=None)
        for source in plan(options)
        if isinstance(source, PartSource)
    ]
    if not sources:
        raise DataError(f"nothing to read in {', '.join(options.input)}")
    with disk_errors(output):
        return _mix(options, config, tokenizer, sources, command, on_bytes)


def _mix(
    options: RunOptions,
    config: MixConfig,
    tokenizer: Tokenizer,
    sources: Sequence[Source],
    command: Sequence[str],
    on_bytes: Callable[[int], object],
) -> Mixture:
    output = options.folder
    output.mkdir(parents=True, exist_ok=True)
    with open_locked(output / ".lock"):
        step = config.step(tokenizer)
        claim(output, fingerprint_of([step], sources, options), [step], options, command)
        for folder in (output, *filter(Path.is_dir, output.iterdir())):
            remove_leftovers(folder)
        (output / COUNTS).mkdir(exist_ok=True)
        mixture = Mixture(config)
        tasks = []
        for number, source in enumerate(sources):
            name = _name(source, options.input)
            fingerprint = digest([source.fingerprint(), name, dict(step.settings)])
            task = _Task(number, source, name, fingerprint)
            done = read_counts(_counts_path(output, number), fingerprint, _from_json)
            if done is None:
                tasks.append(task)
            else:
                mixture.add(*done)
                on_bytes(source.num_bytes)
        if len(tasks) < len(sources):
            logger.info(
                "continuing: %d of %d shards are done", len(sources) - len(tasks), len(sources)
            )
        if tasks:
            with pool_of(options)(_ShardCounter(config, tokenizer, output), len(tasks)) as pool:
                for task, counted in zip(tasks, pool.map(tasks), strict=True):
                    mixture.add(*counted)
                    on_bytes(task.source.num_bytes)
        if mixture.num_bad:
            why = ", or are not as curate.py format wrote them" if config.formatted else ""
            logger.warning("%d records are left out: they have no text%s", mixture.num_bad, why)
        mixture.write(output)
    (output / ".lock").unlink(missing_ok=True)
    return mixture


def _counts_path(output: Path, number: int) -> Path:
    return output / COUNTS / f"{number:05d}.json"


def _from_json(content: dict[str, Any]) -> _Counts:
    counts = {(language, source): Count(*rest) for language, source, *rest in content["counts"]}
    return counts, content["bad"]


def _name(source: Source, inputs: Sequence[str]) -> str:
    """Name the source of a shard: the input folder that holds its file, or the file without its endings."""
    assert isinstance(source, PartSource), "plan() cuts files into parts"
    path = source.part.path
    if str(path) in inputs:
        return path.name.partition(".")[0]
    return path.resolve().parent.name
