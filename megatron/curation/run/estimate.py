"""What a run would do, from a sample: what is dropped and why, how long it takes, how much disk it needs.

The sample is spread over the input: the first records of evenly spaced shards, each of which stands for its whole shard.
Nothing is written. Knows nothing of command lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from megatron.curation.run import ledger
from megatron.curation.run.document import Document, Entry, Stage, apply_stages, num_bytes
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Comparison, Step, group
from megatron.curation.run.passes import plan as plan_input
from megatron.curation.run.record_io import BadRecord, PartSource, Source
from megatron.curation.run.runner import read_stage
from megatron.curation.run.totals import Totals

NUM_PLACES = 200  # shards that are looked into, where each gives this much or more:
PLACE_BYTES = 1 << 18
GOLDEN_RATIO = 0.6180339887498949  # its multiples lie evenly between 0 and 1
AHEAD_BYTES = 1 << 15  # that a decompressor has read beyond what it gave, in the mean
# Of a document, as long as dedup runs: keys and rows, signature, digest, rank, id, decision.
FINGERPRINT_BYTES = 25 * 12 + 256 + 16 + 16 + 40 + 21


@dataclass(frozen=True)
class Estimate:
    """Predictions for the whole input."""

    sample: Totals
    whole: Totals  # what the sample stands for
    input_bytes: int  # on disk
    sampled_bytes: int  # of them
    seconds: float  # one core, for the whole
    records_bytes: float  # written at the end, compressed
    ledger_bytes: float
    passing_bytes: float  # records between passes, and what dedup remembers: there while it runs
    repeated: tuple[
        float | None, ...
    ]  # for each dedup, the part of the sample that repeats another

    def describe(self) -> str:
        """Lay the predictions out in lines."""
        whole = self.whole
        lines = [
            f"sample: {self.sample.describe()}",
            f"whole input: {self.input_bytes / 1e9:,.3f} GB on disk, about {whole.num_read:,} documents, "
            f"{whole.bytes_read / 1e9:,.3f} GB of text",
        ]
        for rule, count, size in whole.by_rule():
            share = count / max(whole.num_read, 1)
            lines.append(
                f"  {rule:<32} {share:7.2%} of documents, {size / max(whole.bytes_read, 1):7.2%} of bytes"
            )
        lines.append(
            f"kept: about {whole.kept():,} documents, {whole.bytes_kept() / 1e9:,.3f} GB of text"
            + (", before what dedup drops" if self.repeated else "")
        )
        for part in self.repeated:
            of_sample = (
                ""
                if part is None
                else f"{part:.2%} of the sample's documents repeat another of it; "
            )
            lines.append(
                f"dedup: {of_sample}of the whole it drops more than of a sample, since most twins of a document lie "
                "outside of it"
            )
        lines.append(
            f"disk: about {self.records_bytes / 1e9:,.3f} GB of records, {self.ledger_bytes / 1e9:,.3f} GB of ledger"
            + (
                f"; while it runs {self.passing_bytes / 1e9:,.3f} GB more"
                if self.passing_bytes
                else ""
            )
        )
        speed = whole.bytes_read / 1e6 / max(self.seconds, 1e-9)
        lines.append(
            f"time: about {self.seconds / 3600:,.3f} core-hours ({self.seconds:,.0f} s) at {speed:,.1f} MB/s of text a core"
        )
        return "\n".join(lines)


@dataclass
class _Place:
    """What the first records of one shard gave, and how many of these the shard is."""

    totals: list[Totals]  # of each pass
    written: list[int]  # bytes that each pass writes, compressed
    texts: list[list[str]]  # that reach each pass
    entries: list[Entry] = field(default_factory=list)
    sampled_bytes: int = 0
    seconds: float = 0.0
    weight: float = 1.0


def estimate(
    steps: Sequence[Step], options: RunOptions, *, sources: Sequence[Source] | None = None
) -> Estimate:
    """Read a sample and predict."""
    shards = plan_input(options) if sources is None else sources
    passes = group(steps)
    stages = [one.stages for one in passes]
    stages[0] = (read_stage(options.max_document_bytes), *stages[0])
    chosen, num_wanted = _chosen(shards, int(options.sample_mb * 1e6))
    places = [_look(shard, num_wanted, stages) for shard in chosen]
    input_bytes = sum(shard.num_bytes for shard in shards)
    scale = input_bytes / max(sum(shard.num_bytes for shard in chosen), 1)
    for shard, place in zip(chosen, places, strict=True):
        place.weight = scale * shard.num_bytes / max(place.sampled_bytes, 1)

    seconds = sum(place.seconds * place.weight for place in places)
    passing = sum(sum(place.written[:-1]) * place.weight for place in places)
    repeated = []
    for number, one in enumerate(passes):
        if one.comparison is not None:
            arrived = sum(len(place.texts[number]) * place.weight for place in places)
            spent, part = _rehearse(one.comparison, [t for p in places for t in p.texts[number]])
            seconds += spent * arrived
            passing += FINGERPRINT_BYTES * arrived
            repeated.append(part)
    return Estimate(
        _summed(places, is_whole=False),
        _summed(places, is_whole=True),
        input_bytes,
        sum(place.sampled_bytes for place in places),
        seconds,
        sum(place.written[-1] * place.weight for place in places),
        sum(ledger.size_of(place.entries) * place.weight for place in places),
        passing,
        tuple(repeated),
    )


def _chosen(shards: Sequence[Source], num_wanted: int) -> tuple[list[Source], float]:
    """Give shards, one from each of equal stretches of the input, and the bytes of input that are wanted of each.

    Where in a stretch differs, so that an order of the input that repeats itself is not met in step.
    """
    mean = max(sum(shard.num_bytes for shard in shards) // len(shards), 1)
    count = max(-(-num_wanted // mean), min(NUM_PLACES, num_wanted // PLACE_BYTES))
    count = min(max(count, 1), len(shards))
    places = [number + number * GOLDEN_RATIO % 1 for number in range(count)]
    return [shards[int(len(shards) * place / count)] for place in places], num_wanted / count


def _look(shard: Source, num_wanted: float, passes: Sequence[Sequence[Stage]]) -> _Place:
    """Do with the first records of a shard what a run would do, writing nothing."""
    place = _Place([Totals() for _ in passes], [], [[] for _ in passes])
    sinks = [pa.BufferOutputStream() for _ in passes]
    streams = [pa.CompressedOutputStream(sink, "zstd") for sink in sinks]
    start = time.perf_counter()
    for item, size in _read(shard):
        place.sampled_bytes += size
        if isinstance(item, BadRecord):
            place.totals[0].bad[item.reason] += 1
        elif item is not None:
            _send(item, passes, place, streams)
        if place.sampled_bytes >= num_wanted:
            is_ahead = isinstance(shard, PartSource) and shard.part.path.suffix in (".gz", ".zst")
            place.sampled_bytes -= AHEAD_BYTES if is_ahead else 0
            break
    for stream in streams:
        stream.close()
    place.seconds = time.perf_counter() - start
    place.written = [sink.getvalue().size for sink in sinks]
    return place


def _send(
    document: Document, passes: Sequence[Sequence[Stage]], place: _Place, streams: Sequence[Any]
) -> None:
    """Send a document through all passes."""
    left: Document | None = document
    for number, stages in enumerate(passes):
        if left is None:
            break
        totals = place.totals[number]
        totals.num_read += 1
        totals.bytes_read += num_bytes(left.text)
        place.texts[number].append(left.text)

        def note(
            entry: Entry, totals: Totals = totals, is_last: bool = stages is passes[-1]
        ) -> None:
            totals.note(entry)
            if is_last or entry.verdict != "kept":
                place.entries.append(entry)

        left = apply_stages(left, stages, note)
        if left is not None:
            row: dict[str, Any] = {"text": left.text, "id": left.id, **left.metadata}
            streams[number].write(orjson.dumps(row, default=str))


def _read(shard: Source) -> Iterator[tuple[Document | BadRecord | None, int]]:
    """Give documents, and with some of them the bytes of input that those since the last such stood for."""
    if isinstance(shard, PartSource):
        yield from shard.read_with_bytes()
        return
    for item in shard.read():
        yield item, num_bytes(item.text) if isinstance(item, Document) else 0


def _rehearse(comparison: Comparison, texts: Sequence[str]) -> tuple[float, float | None]:
    """Give the seconds that a text takes to be compared, and the part of them that repeats another, if it is known."""
    start = time.perf_counter()
    part = comparison.rehearse(texts)
    return (time.perf_counter() - start) / max(len(texts), 1), part


def _summed(places: Sequence[_Place], *, is_whole: bool) -> Totals:
    """Add up what was counted at all places, or what that stands for."""
    whole = Totals()
    for place in places:
        totals = Totals()
        for number, one in enumerate(place.totals):
            totals.follow(one) if number else totals.add(one)
        whole.add(totals.scaled(place.weight) if is_whole else totals)
    return whole
