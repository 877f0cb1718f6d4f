"""Writes a token file together with the provenance of its documents.

Knows nothing of where the documents come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy.typing as npt

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.origin import Origin, format_origin, origin_path
from megatron.data.preprocessing.documents import Documents
from megatron.data.provenance import Provenance, ProvenanceWriter, provenance_path
from megatron.data.publish import sync
from megatron.errors import ConfigError


class DatasetWriter:
    """Writes PREFIX.bin, .idx and .sha256, with fields .provenance.arrow, with an origin .origin.json.

    Nothing is seen before `finalize`. As a context manager it leaves nothing behind unless that was called.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: npt.DTypeLike,
        fields: Sequence[str] = (),
        origin: Origin | None = None,
    ) -> None:
        """Start the files; each document's provenance has these fields."""
        self.builder = IndexedDatasetBuilder(prefix, dtype)
        self._is_published = False
        self._origin = origin
        self._origin_path = Path(f"{origin_path(prefix)}.tmp")
        self._provenance_path = Path(f"{provenance_path(prefix)}.tmp")
        self._provenance: ProvenanceWriter | None = None
        if not fields:
            return
        try:
            self._provenance = ProvenanceWriter(self._provenance_path, fields)
        except (OSError, ConfigError):
            self.builder.abort()
            raise

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The builder holds the lock on this name: its abort comes last.
        if self._provenance is not None and not self._is_published:
            self._provenance.abort()
            self._provenance_path.unlink(missing_ok=True)
        if not self._is_published:
            self._origin_path.unlink(missing_ok=True)
        self.builder.abort()

    def add(self, documents: Documents) -> None:
        """Append documents."""
        self.builder.add_items(documents.ids, documents.sizes, documents.items_per_document)
        if self._provenance is not None:
            self._provenance.add(documents.provenance)

    def add_dataset(
        self,
        dataset: IndexedDataset,
        provenance: Provenance | None,
        on_piece: Callable[[bytes], None] = lambda piece: None,
    ) -> None:
        """Append a whole dataset; its provenance must have the fields of this one.

        on_piece is given the content of its .bin, piece by piece, as it is copied.
        """
        self.builder.add_dataset(dataset, on_piece)
        if self._provenance is not None:
            assert provenance is not None
            for batch in provenance.batches():
                self._provenance.add({name: batch.column(name) for name in batch.schema.names})

    def finalize(self) -> None:
        """Force all to disk and publish it."""
        self.complete()
        self.publish()

    def complete(self) -> None:
        """Do all of `finalize` that a full disk can refuse."""
        sides = []
        if self._provenance is not None:
            self._provenance.close()
            sides.append((self._provenance_path, provenance_path(self.builder.prefix)))
        if self._origin is not None:
            with self._origin_path.open("wb") as file:
                file.write(format_origin(self._origin))
                sync(file)
            sides.append((self._origin_path, origin_path(self.builder.prefix)))
        self.builder.complete(sides)

    def publish(self) -> None:
        """Put what is complete in its place."""
        self.builder.publish()
        self._is_published = True
