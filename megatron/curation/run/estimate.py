"""What a run would do, from a sample: what is dropped and why, how long it takes, how much disk it needs.

The sample is spread over the input: the first records of evenly spaced shards. Nothing is written. Knows nothing of
command lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from megatron.curation.run.document import Document, Entry, Stage, apply_stages, num_bytes
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Step
from megatron.curation.run.passes import plan as plan_input
from megatron.curation.run.record_io import BadRecord, PartSource, Source
from megatron.curation.run.runner import read_stage
from megatron.curation.run.totals import Totals

NUM_PLACES = 50  # shards that are looked into, where each gives this much or more:
PLACE_BYTES = 1 << 20
FINGERPRINT_BYTES = (
    25 * 12 + 256 + 16 + 16 + 40
)  # a document: keys and rows, signature, digest, rank, id


@dataclass(frozen=True)
class Estimate:
    """Predictions for the whole input."""

    totals: Totals  # of the sample
    input_bytes: int  # all of them, on disk
    sampled_bytes: int  # of them, on disk
    seconds: float  # one core, for the sample
    written_bytes: int  # compressed, of the sample
    num_comparisons: int

    @property
    def factor(self) -> float:
        """Give how many samples the input is."""
        return self.input_bytes / max(self.sampled_bytes, 1)

    def describe(self) -> str:
        """Lay the predictions out in lines."""
        factor, totals = self.factor, self.totals
        documents = totals.num_read * factor
        lines = [
            f"sample: {totals.describe()}",
            f"whole input: {self.input_bytes / 1e9:,.3f} GB on disk, about {documents:,.0f} documents, "
            f"{totals.bytes_read * factor / 1e9:,.3f} GB of text",
        ]
        for rule, count, size in totals.by_rule():
            share = count / max(totals.num_read, 1)
            lines.append(
                f"  {rule:<32} {share:7.2%} of documents, {size / max(totals.bytes_read, 1):7.2%} of bytes"
            )
        lines.append(
            f"kept: about {totals.kept() * factor:,.0f} documents, {totals.bytes_kept() * factor / 1e9:,.3f} GB of text, "
            f"{self.written_bytes * factor / 1e9:,.3f} GB on disk"
        )
        if self.num_comparisons:
            lines.append(
                f"dedup: what it drops cannot be told from a sample; while it runs it needs "
                f"{totals.kept() * factor * FINGERPRINT_BYTES / 1e9:,.3f} GB of disk for fingerprints"
            )
        speed = totals.bytes_read / 1e6 / max(self.seconds, 1e-9)
        hours = self.seconds * factor / 3600
        lines.append(f"time: about {hours:,.3f} core-hours at {speed:,.1f} MB/s of text a core")
        return "\n".join(lines)


def estimate(
    steps: Sequence[Step], options: RunOptions, *, sources: Sequence[Source] | None = None
) -> Estimate:
    """Read a sample and predict."""
    shards = plan_input(options) if sources is None else sources
    read = read_stage(options.max_document_bytes)
    stages = [read, *(step for step in steps if isinstance(step, Stage))]
    comparisons = [step for step in steps if not isinstance(step, Stage)]
    totals, out = Totals(), pa.BufferOutputStream()
    stream = pa.CompressedOutputStream(out, "zstd")
    sampled = 0
    start = time.perf_counter()
    texts: list[str] = []
    entries: list[Entry] = []

    def note(entry: Entry) -> None:
        totals.note(entry)
        entries.append(entry)

    for item, size in _sample(shards, int(options.sample_mb * 1e6)):
        sampled += size
        if isinstance(item, BadRecord):
            totals.bad[item.reason] += 1
        elif item is not None:
            totals.num_read += 1
            totals.bytes_read += num_bytes(item.text)
            left = apply_stages(item, stages, note)
            if left is not None:
                texts.append(left.text)
                row: dict[str, Any] = {"text": left.text, "id": left.id, **left.metadata}
                stream.write(orjson.dumps(row, default=str))
    for comparison in comparisons:
        comparison.rehearse(texts)
    stream.close()
    return Estimate(
        totals,
        sum(source.num_bytes for source in shards),
        sampled,
        time.perf_counter() - start,
        len(out.getvalue()),
        len(comparisons),
    )


def _sample(
    shards: Sequence[Source], num_wanted: int
) -> Iterator[tuple[Document | BadRecord | None, int]]:
    """Give documents of evenly spaced shards, and with the last of each the bytes of input they stood for."""
    mean = max(sum(shard.num_bytes for shard in shards) // len(shards), 1)
    count = max(-(-num_wanted // mean), min(NUM_PLACES, num_wanted // PLACE_BYTES))
    count = min(max(count, 1), len(shards))
    chosen = [shards[len(shards) * number // count] for number in range(count)]
    for shard in chosen:
        done = 0
        if isinstance(shard, PartSource):
            for item, size in shard.read_with_bytes():
                done += size
                yield item, size
                if done >= num_wanted / len(chosen):
                    break
            continue
        for item in shard.read():
            size = num_bytes(item.text) if isinstance(item, Document) else 0
            done += size
            yield item, size
            if done >= num_wanted / len(chosen):
                break
