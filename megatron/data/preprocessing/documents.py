"""Encoded documents on their way to a dataset: ids, sizes and provenance of many documents in a few arrays.

Knows nothing of text, nor of where documents are written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.data.arrow_array import numbers
from megatron.data.indexed_dataset import IdArray, IndexedDataset
from megatron.data.provenance import BATCH_ROWS, Provenance
from megatron.data.token_range import token_positions

SLICE_BYTES = 16 << 20  # of ids read from a dataset at a time
GATHERED_VALUES = 1 << 17  # copied in one go, so that what is needed beside the result is small
# values; below, an index of every value is faster than a Python object for every run
SHORT_RUN = 64
OBJECT_BYTES = 2000  # what the Python objects of one `Documents` take


@dataclass(frozen=True)
class Documents:
    """Consecutive documents; pickles with its arrays beside the pickle."""

    ids: IdArray
    sizes: npt.NDArray[np.int64]  # ids of each item
    items_per_document: npt.NDArray[np.int64]
    provenance: dict[str, Any] = field(default_factory=dict)  # Arrow arrays of text, one a field

    def __len__(self) -> int:
        return len(self.items_per_document)

    @property
    def num_bytes(self) -> int:
        """Count the bytes of the ids."""
        return self.ids.nbytes

    @property
    def memory_bytes(self) -> int:
        """Count all that these take in memory: ids, sizes, provenance, and the objects that hold them."""
        arrays = (self.ids, self.sizes, self.items_per_document, *self.provenance.values())
        return OBJECT_BYTES + sum(array.nbytes for array in arrays)

    def take(self, order: npt.NDArray[np.int64]) -> Documents:
        """Give the documents with these numbers, in this order."""
        items = _ends(self.items_per_document)
        tokens = _ends(self.sizes)[items]
        has_one_item_each = bool((self.items_per_document == 1).all())
        return Documents(
            _gather(self.ids, tokens, order),
            self.sizes[order] if has_one_item_each else _gather(self.sizes, items, order),
            self.items_per_document[order],
            {
                name: column.take(numbers(order, np.int64))
                for name, column in self.provenance.items()
            },
        )

    def cut(self, bounds: npt.NDArray[np.int64]) -> Iterator[Documents]:
        """Give documents bounds[i] to bounds[i + 1] for every i."""
        items = _ends(self.items_per_document)[bounds]
        tokens = _ends(self.sizes)[items]
        for i, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
            rows = np.arange(begin, end)
            yield Documents(
                self.ids[tokens[i] : tokens[i + 1]],
                self.sizes[items[i] : items[i + 1]],
                self.items_per_document[begin:end],
                # Copied: Arrow pickles the whole of what a slice is part of.
                {
                    name: column.take(numbers(rows, np.int64))
                    for name, column in self.provenance.items()
                },
            )


def join_documents(parts: Sequence[Documents]) -> Documents:
    """Put documents one after another."""
    if len(parts) == 1:
        return parts[0]
    import pyarrow

    return Documents(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.items_per_document for part in parts]),
        {
            name: pyarrow.concat_arrays([part.provenance[name] for part in parts])
            for name in parts[0].provenance
        },
    )


def read_documents(dataset: IndexedDataset, provenance: Provenance | None) -> Iterator[Documents]:
    """Give all documents of a dataset, and its provenance with them, a few MB at a time."""
    rows = provenance.batches() if provenance is not None else None
    for first in range(0, dataset.num_documents, BATCH_ROWS):
        items = np.array(dataset.document_items[first : first + BATCH_ROWS + 1])
        tokens = token_positions(dataset, np.arange(first, first + len(items)))
        batch = next(rows) if rows is not None else None
        start = 0
        while start < len(items) - 1:
            limit = tokens[start] + SLICE_BYTES // dataset.dtype.itemsize
            stop = max(int(np.searchsorted(tokens, limit, "right")) - 1, start + 1)
            yield Documents(
                dataset.read(int(tokens[start]), int(tokens[stop])),
                dataset.sizes[items[start] : items[stop]].astype(np.int64),
                np.diff(items[start : stop + 1]),
                {}
                if batch is None
                else {
                    name: batch.column(name).slice(start, stop - start)
                    for name in batch.schema.names
                },
            )
            start = stop


def _ends(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give where each run of so many starts, and the end: one more than there are runs."""
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def _gather(
    values: npt.NDArray[Any], ends: npt.NDArray[np.int64], order: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Put the runs of values with these numbers one after another."""
    begins, sizes = ends[order], ends[order + 1] - ends[order]
    places = _ends(sizes)  # in the result
    result = np.empty(places[-1], values.dtype)
    first = 0
    while first < len(order):
        limit = places[first] + GATHERED_VALUES
        last = max(int(np.searchsorted(places, limit, "right")) - 1, first + 1)
        start, stop = places[first], places[last]
        if stop - start < SHORT_RUN * (last - first):
            shifts = np.repeat(begins[first:last] - places[first:last], sizes[first:last])
            result[start:stop] = values[np.arange(start, stop) + shifts]
        else:
            for run in range(first, last):
                begin = begins[run]
                result[places[run] : places[run + 1]] = values[begin : begin + sizes[run]]
        first = last
    return result
