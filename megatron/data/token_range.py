"""The tokens of a range of documents as one sequence, without those of documents that are excluded.

Nothing is copied and nothing is written: positions of the sequence are mapped to positions of the token file past
the holes that excluded documents leave, by a binary search over the holes. Memory and the cost of making it grow
with the holes, not with the data; without any there is one entry. Knows nothing of why documents are excluded.
"""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt

from megatron.data.indexed_dataset import IndexedDataset

# Runs of documents, int64 [n, 2]: first and past the last of each, ascending, with a gap between any two.
Runs = npt.NDArray[np.int64]

NO_RUNS: Runs = np.empty((0, 2), np.int64)


def join_runs(runs: Runs) -> Runs:
    """Give the union of runs [first, end) that come in any order and may overlap."""
    runs = runs[np.lexsort((runs[:, 1], runs[:, 0]))]
    runs = runs[runs[:, 1] > runs[:, 0]]
    if not len(runs):
        return NO_RUNS
    ends = np.maximum.accumulate(runs[:, 1])
    is_first = np.append(True, runs[1:, 0] > ends[:-1])
    is_last = np.append(is_first[1:], True)
    return np.stack([runs[is_first, 0], ends[is_last]], axis=1)


def clip_runs(runs: Runs, documents: range) -> Runs:
    """Give the part of runs that lies in a range of documents."""
    clipped = runs.clip(documents.start, documents.stop)
    return clipped[clipped[:, 1] > clipped[:, 0]]


def token_positions(indexed: IndexedDataset, documents: npt.NDArray[np.int64]) -> Runs:
    """Give where each of some documents starts in `indexed.tokens`; int64 of the same shape."""
    items = indexed.document_items[documents]
    is_end = items == len(indexed)
    starts = indexed.pointers[np.where(is_end, 0, items)] if len(indexed) else items
    return np.where(is_end, indexed.num_tokens, starts // indexed.dtype.itemsize)


class TokenRange:
    """Tokens of the documents of a range that are kept, numbered from 0."""

    def __init__(self, indexed: IndexedDataset, documents: range, excluded: Runs = NO_RUNS) -> None:
        """Take the range without the documents of `excluded`, which may lead beyond it."""
        self.indexed = indexed
        holes = clip_runs(excluded, documents)
        start, stop = map(indexed.document_start, (documents.start, documents.stop))
        self.num_documents = len(documents) - int((holes[:, 1] - holes[:, 0]).sum())
        edges = token_positions(indexed, holes)
        edges = edges[edges[:, 1] > edges[:, 0]]
        # Kept stretches lie between the holes; those of no token would make the search ambiguous.
        starts = np.append(start, edges[:, 1])
        lengths = np.append(edges[:, 0], stop) - starts
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
        self.num_tokens = int(lengths.sum())
        self._ends = np.cumsum(lengths)  # the position after the last of each stretch
        self._shifts = starts - (self._ends - lengths)  # from a position to its place in the file

    def pieces(self, start: int, stop: int) -> list[range]:
        """Give where positions start to stop lie in the token file: a range for each stretch they touch."""
        assert 0 <= start <= stop <= self.num_tokens
        result = []
        stretch = bisect.bisect_right(self._ends, start)
        while start < stop:
            end, shift = min(stop, int(self._ends[stretch])), int(self._shifts[stretch])
            result.append(range(start + shift, end + shift))
            start, stretch = end, stretch + 1
        return result

    def positions(self, start: int, stop: int) -> list[range]:
        """Give the positions of tokens start to stop of the token file, as far as they are kept: undo `pieces`."""
        result = []
        begin = 0
        for end, shift in zip(self._ends.tolist(), self._shifts.tolist(), strict=True):
            first, last = max(begin, start - shift), min(end, stop - shift)
            if first < last:
                result.append(range(first, last))
            begin = end
        return result

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Give tokens start to stop."""
        parts = [self.indexed.read(piece.start, piece.stop) for piece in self.pieces(start, stop)]
        if len(parts) == 1:
            return parts[0].astype(np.int64)
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64)
