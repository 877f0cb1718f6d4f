"""What a run would do, from a sample: what is dropped and why, how long it takes, how much disk it needs.

Every place of the sample stands for equally much of the input; how far the places differ says how far off the sum may
be. Nothing is written. Knows nothing of command lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from megatron.curation.run import ledger
from megatron.curation.run.document import Document, Entry, Stage, apply_stages, num_bytes
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Comparison, Step, group
from megatron.curation.run.passes import plan as plan_input
from megatron.curation.run.record_io import BadRecord, Source
from megatron.curation.run.sample import Place, Sample
from megatron.curation.run.shard_pass import read_stage
from megatron.curation.run.totals import Totals, weighted_sum

FEWEST_PLACES = 8  # from which on their differences say how far off a sum may be
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
    # for each dedup, the part of the sample that repeats another
    repeated: tuple[float | None, ...]
    num_places: int
    is_whole: bool  # the sample is all there is
    read_part: float  # of what can only be read from its beginning on
    # How far off, as a part, what is read and what is kept may be: the bounds of 95 of 100 samples. None: unknown.
    documents_error: float | None
    bytes_error: float | None
    kept_error: float | None
    kept_bytes_error: float | None

    def describe(self) -> str:
        """Lay the predictions out in lines."""
        whole = self.whole
        lines = [
            f"sample: {self.sample.describe()}",
            f"whole input: {self.input_bytes / 1e9:,.3f} GB on disk, about {whole.num_read:,} documents"
            f"{_within(self.documents_error)}, {whole.bytes_read / 1e9:,.3f} GB of text"
            f"{_within(self.bytes_error)}",
        ]
        for rule, count, size in whole.by_rule():
            share = count / max(whole.num_read, 1)
            lines.append(
                f"  {rule:<32} {share:7.2%} of documents, {size / max(whole.bytes_read, 1):7.2%} of bytes"
            )
        lines.append(
            f"kept: about {whole.kept():,} documents{_within(self.kept_error)}, "
            f"{whole.bytes_kept() / 1e9:,.3f} GB of text{_within(self.kept_bytes_error)}"
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
        return "\n".join([*lines, *self._caveats()])

    def _caveats(self) -> list[str]:
        """Say what the predictions rest on."""
        if self.is_whole:
            return ["the sample is all of the input"]
        lines = [
            f"from {self.sampled_bytes / 1e6:,.1f} MB at {self.num_places:,} places of the input; of 100 samples 95 are "
            "within ±"
        ]
        if self.documents_error is None:
            lines = [
                f"from {self.sampled_bytes / 1e6:,.1f} MB at {self.num_places} place{'s' * (self.num_places != 1)} of the input, too few to tell how "
                "far off that is: give a larger --sample-mb"
            ]
        if self.read_part < 1:
            lines.append(
                f"of what cannot be read from its middle (compressed, Parquet, folders) the first {self.read_part:.0%} was "
                "looked into, and the rest may differ: a larger --sample-mb reads on"
            )
        return lines


def _within(error: float | None) -> str:
    return "" if error is None else f" (±{error:.0%})"


@dataclass
class _Found:
    """What a place gave, how often that is there, and how much it is of each pass."""

    place: Place
    totals: list[Totals]  # of each pass
    row_bytes: list[int]  # that each pass writes, before compression
    entries: list[Entry] = field(default_factory=list)
    seconds: float = 0.0
    weight: float = 1.0  # of documents
    bytes_weight: float = 1.0

    def as_one(self) -> Totals:
        """Give the counts of all passes in one."""
        whole = Totals()
        for number, one in enumerate(self.totals):
            whole.follow(one) if number else whole.add(one)
        return whole


class _Passes:
    """All passes, gone through by a document at a time, with what is needed of all documents together."""

    def __init__(self, stages: Sequence[Sequence[Stage]]) -> None:
        self._stages = stages
        self.texts: list[list[str]] = [[] for _ in stages]  # that reach each pass
        self._sinks = [pa.BufferOutputStream() for _ in stages]
        # One stream for all places: small pieces are compressed better after each other.
        self._streams = [pa.CompressedOutputStream(sink, "zstd") for sink in self._sinks]

    def look(self, place: Place) -> _Found:
        """Do with the records of a place what a run would do, writing nothing."""
        found = _Found(place, [Totals() for _ in self._stages], [0 for _ in self._stages])
        start = time.perf_counter()
        for item in place.items:
            if isinstance(item, BadRecord):
                found.totals[0].bad[item.reason] += 1
            else:
                self._send(item, found)
        found.seconds = place.seconds + time.perf_counter() - start
        place.items = []
        return found

    def written(self) -> list[int]:
        """Give the bytes that all places together come to in each pass."""
        for stream in self._streams:
            stream.close()
        return [sink.getvalue().size for sink in self._sinks]

    def _send(self, document: Document, found: _Found) -> None:
        left: Document | None = document
        for number, stages in enumerate(self._stages):
            if left is None:
                break
            totals = found.totals[number]
            totals.num_read += 1
            totals.bytes_read += num_bytes(left.text)
            self.texts[number].append(left.text)

            def note(
                entry: Entry, totals: Totals = totals, is_last: bool = stages is self._stages[-1]
            ) -> None:
                totals.note(entry)
                if is_last or entry.verdict != "kept":
                    found.entries.append(entry)

            (left,) = apply_stages([left], stages, note)
            if left is not None:
                row: dict[str, Any] = {"text": left.text, "id": left.id, **left.metadata}
                line = orjson.dumps(row, default=str)
                found.row_bytes[number] += len(line)
                self._streams[number].write(line)


def estimate(
    steps: Sequence[Step], options: RunOptions, *, sources: Sequence[Source] | None = None
) -> Estimate:
    """Read a sample and predict."""
    shards = plan_input(options) if sources is None else sources
    sample = Sample(shards, options.sample_mb * 1e6)
    passes = group(steps)
    stages = [one.stages for one in passes]
    stages[0] = (read_stage(options.max_document_bytes), *stages[0])
    work = _Passes(stages)
    places = [work.look(place) for place in sample]
    written = work.written()
    growth = _weigh(places, sample)

    def whole(of: Callable[[_Found], float]) -> float:
        return sum(of(place) * place.bytes_weight for place in places)

    def on_disk(number: int) -> float:
        rate = written[number] / max(sum(place.row_bytes[number] for place in places), 1)
        return rate * whole(lambda place: place.row_bytes[number])

    seconds = whole(lambda place: place.seconds)
    passing = sum(on_disk(number) for number in range(len(passes) - 1))
    repeated = []
    for number, one in enumerate(passes):
        if one.comparison is not None:
            arrived = sum(place.totals[number].num_read * place.weight for place in places)
            spent, part = _rehearse(one.comparison, work.texts[number])
            seconds += spent * arrived
            passing += FINGERPRINT_BYTES * arrived
            repeated.append(part)
    entries = [entry for place in places for entry in place.entries]
    all_entries = sum(len(place.entries) * place.weight for place in places)
    counts = [place.as_one() for place in places]
    judged = [] if sample.is_whole else places
    return Estimate(
        weighted_sum((one, 1, 1) for one in counts),
        weighted_sum(
            (one, place.weight, place.bytes_weight)
            for one, place in zip(counts, places, strict=True)
        ),
        sample.input_bytes,
        int(min(sum(place.place.num_bytes for place in places), sample.input_bytes)),
        seconds,
        on_disk(-1),
        _ledger_bytes(entries, all_entries, len(shards) * len(passes)),
        passing,
        tuple(repeated),
        len(places),
        sample.is_whole,
        sample.read_part,
        _error(judged, [one.num_read for one in counts]),
        _bytes_error(judged, [one.bytes_read for one in counts], growth),
        _error(judged, [one.kept() for one in counts]),
        _bytes_error(judged, [one.bytes_kept() for one in counts], growth),
    )


def _ledger_bytes(entries: Sequence[Entry], num_entries: float, num_files: int) -> float:
    """Give the bytes of so many entries in so many files, from some of them."""
    frame = ledger.size_of(entries[:1])
    each = (ledger.size_of(entries) - frame) / max(len(entries) - 1, 1)
    return num_files * frame + each * num_entries


def _weigh(places: Sequence[_Found], sample: Sample) -> float:
    """Say of each place how often its documents and bytes are there. Gives lines that there are for each met, in bytes.

    Documents by where they start. Their bytes by how much of the lines was met: few long ones make most of a text, and
    whether one more or less is met changes both alike.
    """
    if sample.is_whole:
        return 1.0
    for one in places:
        share = one.place.times / sample.num_places
        one.weight = one.bytes_weight = sample.input_bytes * share / max(one.place.num_bytes, 1)
    lines = [one for one in places if one.place.is_bytes]
    there = sum(one.weight * one.place.num_units for one in lines)
    met = sum(one.weight * one.place.item_units for one in lines)
    growth = there / met if met else 1.0
    for one in lines:
        one.bytes_weight = one.weight * growth
    return growth


def _error(places: Sequence[_Found], values: Sequence[float]) -> float | None:
    """Give the bounds of a sum over documents, as a part of it; None for no places, of which nothing has to be told."""
    return _spread([one.weight * value for one, value in zip(places, values, strict=False)])


def _bytes_error(places: Sequence[_Found], values: Sequence[float], growth: float) -> float | None:
    """Give the bounds of a sum of bytes, which is (lines there are) x (bytes met) / (lines met)."""
    if not places:
        return None
    lines = np.array([one.place.is_bytes for one in places])
    weights = np.array([one.weight for one in places])
    there = weights * [one.place.num_units for one in places] * lines
    met = weights * [one.place.item_units for one in places] * lines
    found = weights * values
    rate = sum(found[lines]) / max(sum(met), 1)
    changes = np.where(lines, rate * there + growth * (found - rate * met), found)
    return _spread(changes)


def _spread(shares: Sequence[float] | np.ndarray[Any, Any]) -> float | None:
    """Give how far off the sum of what places stand for may be, as a part of it: bounds of 95 of 100 samples."""
    count, total = len(shares), float(sum(shares))
    if count < FEWEST_PLACES or total <= 0:
        return None
    quantile = 1.96 + 2.8 / (count - 1)  # of Student's distribution, within 0.01 from 8 places on
    return quantile * float(np.std(shares, ddof=1)) * count**0.5 / total


def _rehearse(comparison: Comparison, texts: Sequence[str]) -> tuple[float, float | None]:
    """Give the seconds that a text takes to be compared, and the part of them that repeats another, if it is known."""
    start = time.perf_counter()
    part = comparison.rehearse(texts)
    return (time.perf_counter() - start) / max(len(texts), 1), part
