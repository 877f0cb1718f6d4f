"""Which documents repeat which: by digest, and by LSH over band keys, verified and clustered, all from disk.

Documents are numbered through all shards. Keys are looked at one range of values after the other, each small enough
for memory, by any number of processes; of each bucket the best document is compared with the others, and what is
similar becomes an edge. Then of every connected group the best is kept, and whatever resembles a kept one is dropped.
The answer depends on the documents alone. Knows nothing of texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron.curation.dedup.fingerprints import RELEASED, Fingerprints

RANGE_ENTRIES = 4 << 20  # keys that are held at a time, 16 bytes each and their sort
BUCKET_ROUNDS = 8  # times that those unlike the best of a bucket are tried among themselves
COMPARED = 1 << 15  # pairs of signatures that are compared at a time
BLOCK = 1 << 16  # documents that are looked at at a time where all are
EXACT, NEAR = 1, 2
# files of decisions
_DECIDED = {"twins": "i8", "kinds": "u1", "similarities": "f4", "parents": "i8"}

Array = npt.NDArray[Any]
Similarity = Callable[[Array, Array], Array]


class Collection:
    """All shards of a corpus, those of earlier releases first, their documents numbered through."""

    def __init__(self, shards: Sequence[Fingerprints]) -> None:
        """Map the shards."""
        self.shards = list(shards)
        counts = [shard.num_documents for shard in self.shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def gather(self, name: str, documents: Array) -> Array:
        """Give the rows of an array for documents of any shards."""
        shard_of = np.searchsorted(self.starts, documents, side="right") - 1
        found: Array | None = None
        for shard in np.unique(shard_of):
            array = self.shards[shard].array(name)
            chosen = np.flatnonzero(shard_of == shard)
            if found is None:
                found = np.empty((len(documents), *array.shape[1:]), array.dtype)
            found[chosen] = array[documents[chosen] - self.starts[shard]]
        assert found is not None, "there is a document to look up"
        return found

    def id_of(self, document: int) -> str:
        """Give the id of one document."""
        shard = int(np.searchsorted(self.starts, document, side="right")) - 1
        row = int(document - self.starts[shard])
        return str(self.shards[shard].ids()[row].as_py())

    def similarity(self, first: Array, second: Array) -> Array:
        """Estimate the Jaccard similarity of pairs from their signatures.

        Of each minimum one byte is kept. Standard error sqrt(J (1 - J) / 256), 0.029 at most at 0.7.
        """
        result = np.empty(len(first), np.float32)
        for start in range(0, len(first), COMPARED):
            part = slice(start, start + COMPARED)
            result[part] = _similarity(
                self.gather("bytes", first[part]), self.gather("bytes", second[part])
            )
        return result

    def best_first(self, groups: Array, documents: Array) -> Array:
        """Give the order that sorts by group and within it by rank, ties by a hash of the id, then by number."""
        ranks, ties = self.gather("ranks", documents), self.gather("ties", documents)
        return np.lexsort((documents, ties, ~ranks, groups))


def num_ranges(num_keys: int) -> int:
    """Give in how many ranges of values keys are looked at."""
    return max(-(-num_keys // RANGE_ENTRIES), 1)


def _bounds(number: int, count: int) -> tuple[np.uint64, np.uint64]:
    """Give the first and the last key of a range."""
    return np.uint64((number << 64) // count), np.uint64((((number + 1) << 64) // count) - 1)


def exact_pairs(collection: Collection, number: int, count: int) -> tuple[Array, Array]:
    """Give (document, the kept one that it equals) for the digests in a range."""
    low, high = _bounds(number, count)
    digests, documents = [], []
    for shard, start in zip(collection.shards, collection.starts, strict=False):
        all_digests = shard.array("digests")
        chosen = np.flatnonzero((all_digests[:, 0] >= low) & (all_digests[:, 0] <= high))
        digests.append(all_digests[chosen])
        documents.append(chosen + start)
    keys, numbers = np.concatenate(digests), np.concatenate(documents)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, numbers = keys[order], numbers[order]
    is_same = (keys[1:] == keys[:-1]).all(axis=1)
    groups, numbers = _repeated(is_same, numbers)
    if not len(numbers):
        return numbers, numbers
    order = collection.best_first(groups, numbers)
    groups, numbers = groups[order], numbers[order]
    firsts = _first_of_group(groups)
    is_first = firsts == np.arange(len(groups))
    return numbers[~is_first], numbers[firsts][~is_first]


def near_edges(
    collection: Collection, number: int, count: int, decisions: Decisions, threshold: float | None
) -> tuple[Array, Array]:
    """Give the pairs of documents that share a band key in a range and are similar enough, but for exact duplicates.

    threshold None: every pair that shares a key, as the original has it.
    """
    low, high = _bounds(number, count)
    found_keys, found = [], []
    for shard, start in zip(collection.shards, collection.starts, strict=False):
        keys, rows = shard.array("keys"), shard.array("rows")
        part = slice(np.searchsorted(keys, low), np.searchsorted(keys, high, side="right"))
        documents = rows[part] + start
        chosen = ~decisions.is_dropped(documents)
        found_keys.append(keys[part][chosen])
        found.append(documents[chosen])
    keys, numbers = np.concatenate(found_keys), np.concatenate(found)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    groups, numbers = _repeated(keys[1:] == keys[:-1], numbers)
    if not len(numbers):
        return numbers, numbers
    order = collection.best_first(groups, numbers)
    similarity = None if threshold is None else collection.similarity
    first, second, _ = _cover(
        groups[order], numbers[order], similarity, threshold or 0.0, BUCKET_ROUNDS
    )
    pairs = np.unique(np.stack([first, second]), axis=1)
    return pairs[0], pairs[1]


def _repeated(is_same: Array, numbers: Array) -> tuple[Array, Array]:
    """Give (group, document) of the documents whose key another one has; is_same: equal to the key before."""
    groups = np.concatenate([[0], np.cumsum(~is_same)]) if len(numbers) else np.empty(0, np.int64)
    has_twin = np.zeros(len(numbers), bool)
    has_twin[1:] |= is_same
    has_twin[:-1] |= is_same
    return groups[has_twin], numbers[has_twin]


def _first_of_group(groups: Array) -> Array:
    """Give for each place of sorted groups the place where its group begins."""
    begins = np.concatenate([[True], groups[1:] != groups[:-1]])
    return np.maximum.accumulate(np.where(begins, np.arange(len(groups)), 0))


def _cover(
    groups: Array, documents: Array, similarity: Similarity | None, threshold: float, rounds: int
) -> tuple[Array, Array, Array]:
    """Compare the first of each group with the others; those unlike it go on as a group without it.

    Groups are sorted, the best first. Gives (kept, dropped, similarity) of what was similar enough.
    """
    kept, dropped, values = [], [], []
    for _ in range(rounds):
        if not len(groups):
            break
        firsts = _first_of_group(groups)
        rest = np.flatnonzero(firsts != np.arange(len(groups)))
        centers, others = documents[firsts[rest]], documents[rest]
        value = (
            np.ones(len(rest), np.float32) if similarity is None else similarity(centers, others)
        )
        is_similar = value >= threshold
        kept.append(centers[is_similar])
        dropped.append(others[is_similar])
        values.append(value[is_similar])
        groups, documents = groups[rest[~is_similar]], others[~is_similar]
    empty = np.empty(0, np.int64)
    if not kept:
        return empty, empty, np.empty(0, np.float32)
    return np.concatenate(kept), np.concatenate(dropped), np.concatenate(values)


def num_repeated(digests: Sequence[bytes], keys: Array, last_bytes: Array, threshold: float) -> int:
    """Count the documents of a sample that repeat another: by digest, or by a band key that they share and signature."""
    first: dict[bytes, int] = {}
    is_repeated = np.array([first.setdefault(d, i) != i for i, d in enumerate(digests)], bool)
    rows = np.repeat(np.arange(len(keys)), keys.shape[1])
    flat = keys.reshape(-1)
    chosen = (flat != 0) & ~is_repeated[rows]
    order = np.argsort(flat[chosen], kind="stable")
    flat, rows = flat[chosen][order], rows[chosen][order]
    groups, documents = _repeated(flat[1:] == flat[:-1], rows)

    def similarity(one: Array, other: Array) -> Array:
        return _similarity(last_bytes[one], last_bytes[other])

    _, dropped, _ = _cover(groups, documents, similarity, threshold, BUCKET_ROUNDS)
    is_repeated[dropped] = True
    return int(is_repeated.sum())


def _similarity(first: Array, second: Array) -> Array:
    """Estimate the similarity of pairs from the last bytes of their minima: P(equal) = J + (1 - J) / 256."""
    value: Array = ((first == second).mean(axis=1) - 1 / 256) / (1 - 1 / 256)
    return value


def _blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Give the parts of a mapped array, each with the place where it begins."""
    for start in range(0, len(array), BLOCK):
        yield start, array[start : start + BLOCK]


class Decisions:
    """For each document 0 or 1 + the document it repeats, how (EXACT or NEAR), and how similar. Mapped files."""

    def __init__(self, folder: Path, *, is_writable: bool = False) -> None:
        """Map the files."""
        self._folder = folder
        mode: Literal["r", "r+"] = "r+" if is_writable else "r"
        self.twins, self.kinds, self.similarities, self._parents = (
            np.load(folder / f"{name}.npy", mmap_mode=mode) for name in _DECIDED
        )

    @classmethod
    def create(cls, folder: Path, num_documents: int) -> Decisions:
        """Create the files, in which nothing is dropped yet."""
        shape = (max(num_documents, 1),)
        for name, dtype in _DECIDED.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            # or a full disk ends the process where a page is written
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        decisions = cls(folder, is_writable=True)
        for start, block in _blocks(decisions._parents):
            block[:] = np.arange(start, start + len(block))
        return decisions

    def __reduce__(self) -> tuple[Any, ...]:
        # Another machine maps the files for itself, to read.
        return Decisions, (self._folder,)

    def flush(self) -> None:
        """Write what was decided to the files, before others read it."""
        for array in (self.twins, self.kinds, self.similarities):
            array.flush()

    def add_exact(self, documents: Array, twins: Array) -> None:
        """Note what equals a kept document."""
        self.twins[documents] = twins + 1
        self.kinds[documents] = EXACT
        self.similarities[documents] = 1.0

    def is_dropped(self, documents: Array) -> Array:
        """Say which of these are dropped."""
        return np.asarray(self.twins[documents]) != 0

    def add_edges(self, first: Array, second: Array) -> None:
        """Join the groups of each pair of similar documents."""
        from megatron.curation import _minhash

        _minhash.unite(self._parents, first, second)

    def resolve(self, collection: Collection, *, threshold: float, is_one_kept: bool) -> None:
        """Decide: of each connected group the best is kept, and what resembles none that is kept.

        is_one_kept: the best alone, as the original does, though some of the others may not resemble it.
        """
        from megatron.curation import _minhash

        joined = np.concatenate(
            [
                start + np.flatnonzero(block != np.arange(start, start + len(block)))
                for start, block in _blocks(self._parents)
            ]
        )
        if not len(joined):
            return
        documents = np.union1d(joined, _minhash.roots(self._parents, joined))
        groups = _minhash.roots(self._parents, documents)
        order = collection.best_first(groups, documents)
        groups, documents = groups[order], documents[order]
        if is_one_kept:
            firsts = _first_of_group(groups)
            is_dropped = firsts != np.arange(len(groups))
            dropped, kept = documents[is_dropped], documents[firsts][is_dropped]
            values = collection.similarity(kept, dropped)
        else:
            kept, dropped, values = _cover(
                groups, documents, collection.similarity, threshold, len(documents)
            )
        is_new = (
            collection.gather("ranks", dropped) != RELEASED if len(dropped) else np.empty(0, bool)
        )
        self.twins[dropped[is_new]] = kept[is_new] + 1
        self.kinds[dropped[is_new]] = NEAR
        self.similarities[dropped[is_new]] = values[is_new]
