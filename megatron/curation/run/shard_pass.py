"""One pass over shards: read, send every document through the stages, write what is left and the ledger.

A shard is worked on by one process and depends on nothing but its input and the stages: so the files are the same for
any number of workers. They appear whole, the counts last; a run that was interrupted goes on with the shards that
have none. Knows nothing of what the stages do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron.curation.run import ledger
from megatron.curation.run.document import (
    READ,
    Document,
    Drop,
    Keep,
    Stage,
    Verdict,
    apply_stages,
    num_bytes,
)
from megatron.curation.run.output_folder import (
    aside,
    digest,
    disk_errors,
    read_counts,
    remove_leftovers,
)
from megatron.curation.run.pool import MakePool, each_shard
from megatron.curation.run.record_io import BadRecord, Format, RecordWriter, Source
from megatron.curation.run.totals import Totals
from megatron.data.publish import publish, sync
from megatron.errors import DataError
from megatron.logging import get_logger

logger = get_logger(__name__)

VERSION = 3  # of what the stages decide: a shard of another version is not continued
BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20  # that a model is given at once
NUM_NAMED = 5  # bad records that are named; the others are in the quarantine

OnShard = Callable[[int], object]  # is told the bytes of input of a shard that is done
StagesOf = Callable[[int], Sequence[Stage]]  # the stages of a shard, by its number


@dataclass(frozen=True)
class PassLayout:
    """Where a pass writes: its records, and in the output folder its ledger, counts and quarantine."""

    output: Path
    records: Path  # the output folder, or one inside it that the next pass reads
    number: int = 0
    format: Format = "jsonl.zst"
    # of the passes: in those before, what is kept goes on and is no line of the ledger
    is_last: bool = True

    def name(self, shard: int) -> str:
        """Name the side files of a shard: those of the first pass come first."""
        return f"{self.number}-{shard:05d}"

    def records_path(self, shard: int) -> Path:
        return self.records / f"{shard:05d}.{self.format}"

    def side_path(self, kind: str, shard: int) -> Path:
        """Give the path of a side file: ledger, quarantine or shards."""
        suffix = {"ledger": "parquet", "quarantine": "jsonl", "shards": "json"}[kind]
        return self.output / kind / f"{self.name(shard)}.{suffix}"

    def make_folders(self) -> None:
        """Make all folders, without what an interrupted run left aside in them."""
        for folder in ("ledger", "quarantine", "shards"):
            (self.output / folder).mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.output / folder)
        self.records.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.records)


def read_stage(max_document_bytes: int) -> Stage:
    """Give the stage that every run begins with: no empty documents, none above the hard cap."""

    def apply(document: Document) -> Verdict:
        size = num_bytes(document.text)
        if size == 0:
            return Drop("empty")
        return Drop("too-large", size) if size > max_document_bytes else Keep(document)

    return Stage(READ, apply, {"max_document_bytes": max_document_bytes})


def same_for_all(stages: Sequence[Stage]) -> StagesOf:
    """Give every shard the same stages."""
    return lambda shard: stages


@dataclass(frozen=True)
class _Task:
    number: int
    source: Source
    fingerprint: str


class _ShardWorker:
    """Does one shard; runs in a worker."""

    def __init__(self, stages_of: StagesOf, layout: PassLayout, *, strict: bool) -> None:
        self._stages_of = stages_of
        self._layout = layout
        self._strict = strict

    def __call__(self, task: _Task) -> tuple[Totals, list[str]]:
        """Give the counts, and the records that were set aside, as far as they are named."""
        with disk_errors(self._layout.output):
            return self._run(task.number, task.source, task.fingerprint)

    def _run(self, number: int, source: Source, fingerprint: str) -> tuple[Totals, list[str]]:
        layout, totals = self._layout, Totals()
        kinds = ("ledger", "quarantine", "shards")
        finals = [layout.side_path(kind, number) for kind in kinds]
        finals.insert(2, layout.records_path(number))
        temporary = [aside(path) for path in finals]
        entries = ledger.LedgerWriter(temporary[0])
        named: list[str] = []

        def note(entry: ledger.Entry) -> None:
            totals.note(entry)
            if layout.is_last or entry.verdict != "kept":
                entries.add(entry)

        stages = self._stages_of(number)
        with (
            temporary[1].open("wb") as quarantine,
            RecordWriter(temporary[2], layout.format) as records,
        ):
            for documents in _batches(source.read(), stages):
                bad = [one for one in documents if isinstance(one, BadRecord)]
                for record in bad:
                    self._set_aside(record, quarantine.write, named)
                    totals.bad[record.reason] += 1
                good = [one for one in documents if isinstance(one, Document)]
                totals.num_read += len(good)
                totals.bytes_read += sum(num_bytes(one.text) for one in good)
                for left in apply_stages(good, stages, note):
                    if left is not None:
                        records.write(left)
            sync(quarantine)
            records.close()
        entries.close()
        totals.bytes_written = temporary[2].stat().st_size
        with temporary[3].open("wb") as file:
            file.write(orjson.dumps({"fingerprint": fingerprint, **totals.to_json()}))
            sync(file)
        if not named:  # before the counts, which say that all is as it should be
            temporary.pop(1).unlink()
            finals.pop(1).unlink(missing_ok=True)
        for pair in zip(temporary, finals, strict=True):
            publish([pair])
        return totals, named

    def _set_aside(self, bad: BadRecord, write: Callable[[bytes], Any], named: list[str]) -> None:
        place = f"{bad.place}: {bad.reason}"
        if self._strict:
            raise DataError(f"{place}; fix it, or leave out --strict to set such records aside")
        if len(named) < NUM_NAMED:
            named.append(place)
        line = {"place": bad.place, "reason": bad.reason, "raw": bad.raw}
        write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _batches(
    items: Iterable[Document | BadRecord], stages: Sequence[Stage]
) -> Iterator[list[Document | BadRecord]]:
    """Group what is read where a stage wants many documents at once; the bounds depend on what is read alone."""
    is_batched = any(stage.apply_to_all is not None for stage in stages)
    batch: list[Document | BadRecord] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.text) if isinstance(item, Document) else 0
        if not is_batched or len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def run_pass(
    sources: Sequence[Source],
    stages_of: StagesOf,
    layout: PassLayout,
    *,
    pool: MakePool,
    strict: bool = False,
    on_shard: OnShard = lambda size: None,
) -> Totals:
    """Do all shards that are not done, and give the counts of all. Forks, or asks other machines."""
    layout.make_folders()
    tasks = [
        _Task(number, source, _fingerprint(source, stages_of(number), layout))
        for number, source in enumerate(sources)
    ]

    def done(task: _Task) -> tuple[Totals, list[str]] | None:
        counts = _done(layout, task.number, task.fingerprint)
        return None if counts is None or (strict and counts.bad) else (counts, [])

    worker = _ShardWorker(stages_of, layout, strict=strict)
    name = " ".join(stage.name for stage in stages_of(0))
    totals, num_named = Totals(), 0
    for counts, named in each_shard(tasks, done, worker, pool, on_shard, name=name):
        for place in named[: max(NUM_NAMED - num_named, 0)]:
            logger.warning("set aside %s", place)
        num_named += len(named)
        totals.add(counts)
    assert totals.adds_up(), "every document ends in one line of the ledger"
    return totals


def _fingerprint(source: Source, stages: Sequence[Stage], layout: PassLayout) -> str:
    described = [[stage.name, dict(stage.settings)] for stage in stages]
    return digest([VERSION, source.fingerprint(), described, layout.format])


def _done(layout: PassLayout, number: int, fingerprint: str) -> Totals | None:
    """Give the counts of a shard that is done, None if there are none of this input and these stages."""
    if not layout.records_path(number).exists():
        return None
    return read_counts(layout.side_path("shards", number), fingerprint, Totals.from_json)
