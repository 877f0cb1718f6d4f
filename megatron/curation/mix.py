"""Count how much there is of each language and source, in tokens, and write the blend that training reads.

Records are counted a shard at a time, and may be written apart by group on the way; the counts of a shard are kept, so
that a run which was interrupted goes on, and other caps need no counting. Knows nothing of how token files are made.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.curation.blend import NO_LANGUAGE, Count, Key, MixConfig, Mixture
from megatron.curation.run.document import Document
from megatron.curation.run.options import RunOptions
from megatron.curation.run.output_folder import (
    aside,
    claim,
    digest,
    disk_errors,
    fingerprint_of,
    locked,
    read_counts,
    remove_leftovers,
    write_json,
)
from megatron.curation.run.passes import plan
from megatron.curation.run.pool import each_shard, pool_of
from megatron.curation.run.record_io import BadRecord, PartSource, RecordWriter, Source
from megatron.data.preprocessing.formatted import (
    SENTINELS,
    check_sentinels,
    encode_formatted,
    why_not_formatted,
)
from megatron.data.publish import publish
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.tokenizer.interface import Tokenizer

logger = get_logger(__name__)

BATCH_BYTES = 1 << 20  # of text, encoded at a time
COUNTS = ".counts"  # folder of the counts of each shard; no group has such a name


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
    with disk_errors(output), locked(output):
        step = config.step(tokenizer)
        claim(output, fingerprint_of([step], sources, options), [step], options, command)
        for folder in (output, *filter(Path.is_dir, output.iterdir())):
            remove_leftovers(folder)
        (output / COUNTS).mkdir(exist_ok=True)
        tasks = []
        for number, source in enumerate(sources):
            name = _name(source, options.input)
            fingerprint = digest([source.fingerprint(), name, dict(step.settings)])
            tasks.append(_Task(number, source, name, fingerprint))

        def done(task: _Task) -> _Counts | None:
            return read_counts(_counts_path(output, task.number), task.fingerprint, _from_json)

        mixture = Mixture(config)
        counter = _ShardCounter(config, tokenizer, output)
        for counted in each_shard(tasks, done, counter, pool_of(options), on_bytes, name="mix"):
            mixture.add(*counted)
        if mixture.num_bad:
            why = ", or are not as curate.py format wrote them" if config.formatted else ""
            logger.warning("%d records are left out: they have no text%s", mixture.num_bad, why)
        mixture.write(output)
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
