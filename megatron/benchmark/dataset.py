"""Token files: opening millions of documents, reading at random, blending sources.

megatron-core answers these by tables over all samples, which it makes when a run starts; ours by arithmetic.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.benchmark import peers
from megatron.benchmark.bench import SEQ_LENGTH, Bench
from megatron.benchmark.measure import Row, Timed, measure, seconds, timed
from megatron.data.blended_dataset import BlendedDataset
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import (
    HEADER,
    MAGIC,
    VERSION,
    IndexedDataset,
    idx_path,
)
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder

NUM_READS = 2000
NUM_SOURCES = 100


def _synthetic(path: Path, num_documents: int) -> IndexedDataset:
    """Write a dataset of num_documents of about 1,000 ids, whose .bin is a hole in the disk."""
    if not idx_path(path).exists():
        sizes = np.random.default_rng(0).integers(1, 2000, num_documents).astype("<i4")
        ends = np.cumsum(sizes, dtype=np.int64) * 2
        with idx_path(path).open("wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, 8, num_documents, num_documents + 1))
            file.write(sizes.tobytes())
            file.write((ends - 2 * sizes.astype(np.int64)).tobytes())
            file.write(np.arange(num_documents + 1, dtype="<i8").tobytes())
        with Path(f"{path}.bin").open("wb") as file:
            file.truncate(int(ends[-1]))
    return IndexedDataset(path)


_OPEN = """
import sys, time, numpy as np
from megatron.core.datasets import helpers
from megatron.core.datasets.indexed_dataset import IndexedDataset
start = time.perf_counter()
dataset = IndexedDataset(sys.argv[1])
sizes = dataset.sequence_lengths
order = np.arange(len(sizes), dtype=np.int32)
np.random.RandomState(0).shuffle(order)
tokens = int(sizes.sum())
samples = helpers.build_sample_idx(sizes, order, int(sys.argv[2]), 1, tokens, True, True)
shuffled = np.arange(len(samples) - 1, dtype=np.uint32)
np.random.RandomState(0).shuffle(shuffled)
print(time.perf_counter() - start)
"""


def open_dataset(bench: Bench) -> Iterator[Row]:
    """From the path to the first sample of a shuffled epoch."""
    path = bench.folder / "synthetic"
    _synthetic(path, bench.num_documents)

    def ours() -> float:
        def run() -> object:
            indexed = IndexedDataset(path)
            return GPTDataset(
                indexed, range(indexed.num_documents), seq_length=SEQ_LENGTH, seed=0, name="bench"
            ).window_start(0)

        return seconds(run)

    others: dict[str, Timed] = {}
    if version := peers.version("megatron-core"):
        others[f"megatron-core {version}"] = lambda: peers.run_megatron_core(
            _OPEN, path, SEQ_LENGTH
        )[0]
    yield from measure(
        f"open {bench.num_documents / 1e6:g} M documents",
        "1/s",
        1,
        ours,
        others,
        rounds=bench.rounds,
        note="theirs builds an epoch's index, as a run without its cache does",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    indexed = IndexedDataset(path)
    dataset = GPTDataset(
        indexed, range(indexed.num_documents), seq_length=SEQ_LENGTH, seed=0, name="bench"
    )
    far = 987_654_321
    for what, numbers in (
        ("near sample 0", range(500)),
        (f"near sample {far:,}", range(far, far + 500)),
    ):
        yield from measure(
            f"find a window {what}",
            "1/s",
            len(numbers),
            timed(_calls(dataset.window_start, numbers)),
            {},
            rounds=bench.rounds,
            note=f"memory grew by {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MB",
        )


def _calls(function: Callable[[int], object], numbers: Sequence[int]) -> Callable[[], object]:
    return lambda: [function(number) for number in numbers]


_BLEND = """
import sys, time, numpy as np
from megatron.core.datasets import helpers
num_samples, num_sources = int(sys.argv[1]), int(sys.argv[2])
weights = np.arange(1, num_sources + 1) / np.arange(1, num_sources + 1).sum()
start = time.perf_counter()
source, index = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
helpers.build_blending_indices(source, index, weights.tolist(), num_sources, num_samples, False)
print(time.perf_counter() - start)
"""


class _Numbers:
    """A dataset of nothing: blending looks at names and numbers only."""

    def __init__(self, name: str) -> None:
        self.name = name


def blend(bench: Bench) -> Iterator[Row]:
    """From weights to the source of any of 10^9 samples over 100 sources; theirs of 10^7, as it grows with them."""
    sources: list[Any] = [_Numbers(f"source {number}") for number in range(NUM_SOURCES)]

    def ours() -> float:
        def run() -> object:
            blended = BlendedDataset(sources, range(1, NUM_SOURCES + 1), "bench")
            return blended.locate(987_654_321)

        return seconds(run)

    others: dict[str, Timed] = {}
    if version := peers.version("megatron-core"):
        others[f"megatron-core {version}, 10^7"] = lambda: peers.run_megatron_core(
            _BLEND, 10**7, NUM_SOURCES
        )[0]
    yield from measure(
        f"blend 10^9 samples of {NUM_SOURCES} sources", "1/s", 1, ours, others, rounds=bench.rounds
    )


_READ = """
import sys, time, numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
dataset = IndexedDataset(sys.argv[1])
reads = np.load(sys.argv[2]).tolist()
length = int(sys.argv[3])
[dataset.get(d, offset=o, length=length).sum() for d, o in reads]
start = time.perf_counter()
[dataset.get(d, offset=o, length=length).sum() for d, o in reads]
print(time.perf_counter() - start)
"""


def random_read(bench: Bench) -> Iterator[Row]:
    """Windows of 1,024 ids at random places of documents, in memory; their sum is taken, so that each is read."""
    length = 1024
    prefix = bench.folder / "documents"
    rng = np.random.default_rng(0)
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for _ in range(200):
            builder.add_document(rng.integers(0, 49152, 20_000).astype(np.uint16))
        builder.finalize()
    dataset = IndexedDataset(prefix)
    reads = [
        (document % 200, (document * 7919) % (20_000 - length)) for document in range(NUM_READS)
    ]
    np.save(bench.folder / "reads.npy", np.array(reads))

    def ours() -> object:
        return [dataset.get(d, offset=o, length=length).sum() for d, o in reads]

    ours()
    others: dict[str, Timed] = {}
    if version := peers.version("megatron-core"):
        others[f"megatron-core {version}"] = lambda: peers.run_megatron_core(
            _READ, prefix, bench.folder / "reads.npy", length
        )[0]
    tokens = NUM_READS * length / 1e6
    yield from measure("read at random", "Mtok/s", tokens, timed(ours), others, rounds=bench.rounds)
