"""Rows of a Parquet file, a few at a time, as Arrow IPC streams: the columns that are asked for, text as plain strings.

Text may lie in a column of strings of any kind: short or long offsets, views, dictionary-encoded (pandas' categories),
nothing but nulls, or bytes without a type of text, which older writers leave; or in one of a struct, named by
its path (`content.text`). Knows nothing of records.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import DataError

READ_BYTES = 1 << 20  # decoded at a time, about
ROWS_AT_ONCE = 1024  # at most; fewer where rows are long


@dataclass(frozen=True)
class Rows:
    """Consecutive rows."""

    num_bytes: int  # of the file that these stand for
    stream: memoryview  # Arrow IPC
    num_skipped_bytes: int = 0  # of the text of one more row behind them, which is too long


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file for reading little by little; DataError where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        # With the defaults, all columns of a row group are held at once.
        with pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=READ_BYTES, page_checksum_verification=True
        ) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise DataError(
            f"input {path} is not a whole Parquet file ({why}); replace it or leave it out"
        ) from error


def column_names(path: Path) -> list[str]:
    """Give the names of all columns."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def rows_before(path: Path, start: int) -> int:
    """Count the rows of a file before those of the row groups that start at a byte or later."""
    with open_parquet(path) as file:
        return _row_groups(file, path, start, path.stat().st_size)[0]


def read_rows(
    path: Path,
    start: int,
    stop: int,
    keys: Sequence[str],
    fields: Sequence[str],
    *,
    max_rows: int | None,
    max_bytes: int | None = None,
) -> Iterator[Rows]:
    """Give the row groups that start in [start, stop), about 1 MB at a time and at most max_rows rows.

    keys must hold strings, fields may be missing. Of a row whose keys are longer than max_bytes, only that is told.
    """
    with open_parquet(path) as file:
        columns = _columns(path, file.schema_arrow, keys, fields)
        _, numbers = _row_groups(file, path, start, stop)
        groups = [file.metadata.row_group(number) for number in numbers]
        num_rows = sum(group.num_rows for group in groups)
        row_bytes = sum(group.total_byte_size for group in groups) // max(num_rows, 1)
        most = max_rows or ROWS_AT_ONCE
        limit = min(max(READ_BYTES // max(row_bytes, 1), 1), ROWS_AT_ONCE, most)
        size, done, row = stop - start, 0, 0
        for whole in file.iter_batches(batch_size=limit, row_groups=numbers, columns=columns):
            for batch in _decoded(whole, keys):
                for part, num_skipped in _without_long(batch, keys, max_bytes):
                    row += part.num_rows + (num_skipped > 0)
                    position = size * row // num_rows
                    yield Rows(position - done, _as_stream(part), num_skipped)
                    done = position
        if done < size:
            yield Rows(size - done, memoryview(b""))


def _row_groups(file: Any, path: Path, start: int, stop: int) -> tuple[int, list[int]]:
    """Give the first row and the numbers of the row groups that start in [start, stop).

    Where a group starts is reckoned as if all rows of the file had one length.
    """
    size, rows = path.stat().st_size, max(file.metadata.num_rows, 1)
    row, first_row = 0, 0
    numbers: list[int] = []
    for number in range(file.num_row_groups):
        if start <= size * row // rows < stop:
            first_row = first_row if numbers else row
            numbers.append(number)
        row += file.metadata.row_group(number).num_rows
    return first_row, numbers


def _columns(path: Path, schema: Any, keys: Sequence[str], fields: Sequence[str]) -> list[str]:
    """Give the columns to read: every key, which must hold strings, and those of the fields that there are."""
    for key in keys:
        kind = _kind_of(schema, key)
        if kind is None:
            raise DataError(f"input {path} has no column {key!r}; {_hint(schema)}")
        if not _is_text(kind):
            raise DataError(
                f"input {path}: column {key!r} holds {kind}, not strings{_inside(key, kind)}"
            )
    present = [name for name in fields if _kind_of(schema, name) is not None]
    # A struct of which all is read must not be asked for in part, too.
    whole = {name for name in (*keys, *present) if name in schema.names}
    names = [
        name for name in (*keys, *present) if name in whole or name.partition(".")[0] not in whole
    ]
    return list(dict.fromkeys(names))


def _hint(schema: Any) -> str:
    has = f"it has {', '.join(schema.names)}"
    if "blob_id" in schema.to_string():
        return (
            f"{has}. Like The Stack v2, it says by blob_id which files there are and holds none of their text: fetch "
            "the texts from Software Heritage first, as the dataset's page says, and write them as a column"
        )
    return has


def _inside(key: str, kind: Any) -> str:
    """Say which strings there are in a struct."""
    import pyarrow.types

    if not pyarrow.types.is_struct(kind):
        return ""
    found = [field.name for field in kind if _is_text(field.type)]
    return f"; name one inside of it: {', '.join(f'{key}.{name}' for name in found)}" * bool(found)


def _kind_of(schema: Any, key: str) -> Any:
    """Give the type under a key, or under a path of names through structs; None if there is none."""
    import pyarrow.types

    if key in schema.names:
        return schema.field(key).type
    first, *rest = key.split(".")
    kind = schema.field(first).type if first in schema.names else None
    for name in rest:
        if kind is None or not pyarrow.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind if rest else None


def _is_text(kind: Any) -> bool:
    """Say whether a type is read as text. One of nulls alone is: each of its rows is a bad record."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        "string",
        "large_string",
        "string_view",
        "binary",
        "large_binary",
        "binary_view",
        "null",
    )
    return any(getattr(types, f"is_{name}")(kind) for name in tests)


def _decoded(batch: Any, keys: Sequence[str]) -> Iterator[Any]:
    """Give rows without dictionaries, and keys as strings; fewer at a time where that makes them long."""
    import pyarrow
    import pyarrow.compute

    paths = [(key,) if key in batch.schema.names else tuple(key.split(".")) for key in keys]
    fields = []
    for field in batch.schema:
        inside = [path[1:] for path in paths if path[0] == field.name]
        fields.append(field.with_type(_plain_type(field.type, inside)))
    if [field.type for field in fields] == batch.schema.types:
        yield batch
        return
    schema = pyarrow.schema(fields)
    for start, stop in itertools.pairwise(_bounds(batch)):
        columns = []
        for column, field in zip(batch.slice(start, stop - start).columns, fields, strict=True):
            # Parquet does not promise that strings are UTF-8; where they are not is found row by row.
            options = pyarrow.compute.CastOptions(field.type, allow_invalid_utf8=True)
            columns.append(pyarrow.compute.cast(column, options=options))
        yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _plain_type(kind: Any, texts: Sequence[tuple[str, ...]]) -> Any:
    """Give the type without dictionaries; texts: where strings are inside of it, () for itself."""
    import pyarrow
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _plain_type(kind.value_type, texts)
    if () in texts:
        if types.is_binary(kind) or types.is_binary_view(kind):
            return pyarrow.string()
        return pyarrow.large_string() if types.is_large_binary(kind) else kind
    if types.is_struct(kind):
        return pyarrow.struct(
            [
                field.with_type(
                    _plain_type(field.type, [path[1:] for path in texts if path[0] == field.name])
                )
                for field in kind
            ]
        )
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.list_ if types.is_list(kind) else pyarrow.large_list
        return make(kind.value_field.with_type(_plain_type(kind.value_type, ())))
    return kind


def _bounds(batch: Any) -> list[int]:
    """Cut rows where what their dictionaries stand for makes READ_BYTES: a long value may stand in many of them."""
    import pyarrow.types as types

    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if not types.is_dictionary(column.type) or not len(column.dictionary):
            continue
        values = column.dictionary
        if not _is_text(values.type) or len(values.buffers()) != 3:
            continue
        kind = (
            np.int64
            if types.is_large_string(values.type) or types.is_large_binary(values.type)
            else np.int32
        )
        offsets = np.frombuffer(values.buffers()[1], kind)[values.offset :]
        numbers = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
        sizes += offsets[numbers + 1].astype(np.int64) - offsets[numbers]
    pieces = np.cumsum(sizes) // READ_BYTES
    cuts = np.flatnonzero(pieces[1:] != pieces[:-1]) + 1
    return [0, *cuts.tolist(), batch.num_rows]


def _without_long(batch: Any, keys: Sequence[str], most: int | None) -> Iterator[tuple[Any, int]]:
    """Give rows, and the size of one behind them that is left out; 0 where there is none."""
    if most is None or batch.nbytes <= most:
        yield batch, 0
        return
    sizes = np.zeros(batch.num_rows, np.int64)
    for key in keys:
        sizes += _text_sizes(batch, key)
    start = 0
    for number in np.flatnonzero(sizes > most).tolist():
        yield batch.slice(start, number - start), int(sizes[number])
        start = number + 1
    if start < batch.num_rows:
        yield batch.slice(start), 0


def _text_sizes(batch: Any, key: str) -> Any:
    """Give the bytes of the text of each row."""
    import pyarrow
    import pyarrow.compute

    names = [key] if key in batch.schema.names else key.split(".")
    column = batch.column(names[0])
    if names[1:]:
        column = pyarrow.compute.struct_field(column, names[1:])
    if pyarrow.types.is_null(column.type):
        return np.zeros(batch.num_rows, np.int64)
    if pyarrow.types.is_string_view(column.type) or pyarrow.types.is_binary_view(column.type):
        column = column.cast(pyarrow.large_binary())
    sizes = pyarrow.compute.binary_length(column).fill_null(0)
    return sizes.to_numpy(zero_copy_only=False).astype(np.int64)


def _as_stream(batch: Any) -> memoryview:
    """Give rows as an Arrow IPC stream, which is their memory and a short header."""
    import pyarrow

    if not batch.num_rows:
        return memoryview(b"")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())
