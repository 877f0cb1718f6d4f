"""Writes a token file together with the provenance of its documents.

Knows nothing of where the documents come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from megatron.data.documents import Documents
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.data.provenance import Provenance, ProvenanceWriter, provenance_path


class DatasetWriter:
    """PREFIX.bin, .idx, .sha256 and, with fields, .provenance.arrow; nothing is seen before `finalize`.

    As a context manager it leaves nothing behind unless `finalize` was called.
    """

    def __init__(
        self, prefix: str | Path, dtype: npt.DTypeLike, fields: Sequence[str] = ()
    ) -> None:
        """Start the files; each document's provenance has these fields."""
        self.builder = IndexedDatasetBuilder(prefix, dtype)
        self._provenance_path = Path(f"{provenance_path(prefix)}.tmp")
        self._provenance = ProvenanceWriter(self._provenance_path, fields) if fields else None

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.builder.abort()
        if self._provenance is not None:
            self._provenance.abort()

    def add(self, documents: Documents) -> None:
        """Append documents."""
        self.builder.add_items(documents.ids, documents.sizes, documents.items_per_document)
        if self._provenance is not None:
            self._provenance.add(documents.provenance)

    def add_dataset(
        self,
        dataset: IndexedDataset,
        provenance: Provenance | None,
        on_bytes: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Append a whole dataset; its provenance must have the fields of this one."""
        self.builder.add_dataset(dataset, on_bytes)
        if self._provenance is not None:
            assert provenance is not None
            for batch in provenance.batches():
                self._provenance.add({name: batch.column(name) for name in batch.schema.names})

    def finalize(self) -> None:
        """Force all to disk and publish it."""
        if self._provenance is None:
            self.builder.finalize()
            return
        self._provenance.close()
        self.builder.finalize(self._provenance_path)
