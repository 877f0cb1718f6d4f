"""Where each document of a token file came from: `PREFIX.provenance.arrow`, beside `.bin` and `.idx`.

An Arrow IPC file, uncompressed, of nullable utf8 columns that the user named (repo, path, license, …). Row i is
document i. Record batches have 65,536 rows, the last fewer, so a row is found without reading the others; any
program that reads Arrow reads this. Nothing here decides what is trained on. Knows nothing of tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from megatron.data.arrow_array import texts
from megatron.errors import ConfigError, DataError

BATCH_ROWS = 1 << 16
# What says where a document lies, in an opt-out list and in a trace; a column of that name would be ambiguous.
RESERVED_FIELDS = ("dataset", "document")
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what a damaged file raises


def provenance_path(prefix: str | Path) -> Path:
    """Give the path of the side file."""
    return Path(f"{prefix}.provenance.arrow")


def check_fields(fields: Sequence[str]) -> None:
    """Raise ConfigError unless these can be the columns of a side file."""
    if not fields or "" in fields or len(set(fields)) != len(fields):
        raise ConfigError(
            f"provenance fields are {list(fields)}; give one or more names, each once, as repo path license"
        )
    for field in fields:
        if field in RESERVED_FIELDS:
            raise ConfigError(
                f"{field!r} cannot be a provenance field: it names where a document lies; rename the key"
            )


def as_text(value: Any) -> str | None:
    """Give a JSON value as it is stored and compared: text as it is, null as None, all else as compact JSON."""
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


class ProvenanceWriter:
    """Writes a side file row by row to the path it is given; the caller publishes it by rename."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        """Create the file. Raises ConfigError for fields that cannot be columns."""
        check_fields(fields)
        self.num_rows = 0
        self._path = path
        self._schema = pa.schema([pa.field(field, pa.utf8()) for field in fields])
        self._file = path.open("wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        self._pending: list[pa.RecordBatch] = []
        self._num_pending = 0

    def add(self, columns: Mapping[str, Sequence[str | None] | pa.Array]) -> None:
        """Append rows: every field as a list of texts or an Arrow array of them, all of one length."""
        assert set(columns) == set(self._schema.names)
        # An array, unlike a list, is not converted: slices of another side file are only referred to.
        arrays = [
            given if isinstance(given, pa.Array) else texts(given)
            for given in (columns[name] for name in self._schema.names)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self.num_rows += len(batch)
        while len(batch):
            part = batch.slice(0, BATCH_ROWS - self._num_pending)
            batch = batch.slice(len(part))
            self._pending.append(part)
            self._num_pending += len(part)
            if self._num_pending == BATCH_ROWS:
                self._flush()

    def close(self) -> None:
        """Write what is pending and the footer, and force the file to disk."""
        self._flush()
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """Remove the file, unless it is closed already."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def _flush(self) -> None:
        if self._pending:
            try:
                batch = pa.concat_batches(self._pending)
            except pa.ArrowInvalid as error:  # a column of more than 2 GB
                raise DataError(
                    f"{self._path}: the fields of {self._num_pending} documents are too long to store: {error}; "
                    "provenance is for names, not for content"
                ) from error
            self._writer.write_batch(batch)
        self._pending, self._num_pending = [], 0


class Provenance:
    """A side file opened for reading: mapped, so that opening costs the same for any number of rows."""

    def __init__(self, path: Path) -> None:
        """Map a side file; raise DataError if it is missing or damaged."""
        self.path = path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
            schema = self._reader.schema
            self.fields: tuple[str, ...] = tuple(schema.names)
        except UNREADABLE as error:
            raise self._damaged(error) from error
        is_known = all(field.type == pa.utf8() for field in schema)
        if not is_known or not self.fields or len(set(self.fields)) < len(self.fields):
            raise self._damaged(f"its columns are {schema.to_string(show_schema_metadata=False)}")
        self._cached: tuple[int, pa.RecordBatch] | None = None
        self._num_batches: int = self._reader.num_record_batches
        self._num_rows = 0
        if self._num_batches:
            last = self._num_batches - 1
            self._num_rows = last * BATCH_ROWS + len(self._read(self._reader, last))

    @classmethod
    def open(cls, prefix: str | Path, *, num_documents: int) -> Provenance | None:
        """Open the side file of a token file that has num_documents; None if it was written without one.

        Raises DataError if it is damaged or belongs to another token file.
        """
        path = provenance_path(prefix)
        if not path.exists():
            return None
        provenance = cls(path)
        if len(provenance) != num_documents:
            raise DataError(
                f"{path} has {len(provenance)} rows, and {prefix} has {num_documents} documents: they were not "
                "written together; copy all files of the dataset again, or remove this one to do without"
            )
        return provenance

    def __len__(self) -> int:
        return self._num_rows

    def row(self, document: int) -> dict[str, str | None]:
        """Give the fields of one document."""
        if not 0 <= document < len(self):
            raise IndexError(f"row {document} of {self.path}, which has {len(self)}")
        number, place = divmod(document, BATCH_ROWS)
        if self._cached is None or self._cached[0] != number:
            self._cached = (number, self._read(self._reader, number))
        batch = self._cached[1]
        return {field: batch.column(field)[place].as_py() for field in self.fields}

    def batches(self, fields: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Give all rows in order, 65,536 at a time, or some of their fields.

        Reads the file rather than mapping it, so that memory is that of one batch however long the file is.
        """
        chosen = self.fields if fields is None else tuple(fields)
        indices = [self.fields.index(field) for field in chosen]
        options = pa.ipc.IpcReadOptions(included_fields=indices)
        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file, options=options)
            for number in range(self._num_batches):
                yield self._read(reader, number).select(list(chosen))

    def _read(self, reader: pa.RecordBatchFileReader, number: int) -> pa.RecordBatch:
        try:
            batch = reader.get_batch(number)
            batch.validate(full=True)  # offsets that lead outside of the file would end the process
        except UNREADABLE as error:
            raise self._damaged(error) from error
        if len(batch) > BATCH_ROWS or (len(batch) < BATCH_ROWS and number != self._num_batches - 1):
            raise self._damaged(f"batch {number} has {len(batch)} rows, not {BATCH_ROWS}")
        return batch

    def _damaged(self, finding: object) -> DataError:
        return DataError(
            f"{self.path} is damaged: {finding}; copy it again, or remove it to do without provenance"
        )
