"""Texts, and what is said about them, out of chunks of records: JSON lines or Arrow rows.

A record that cannot be used is reported with its number and a reason, never dropped silently. Knows nothing of
files, nor of tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from megatron.data.preprocessing.document_reader import Chunk
from megatron.data.preprocessing.formatted import SENTINELS, why_not_formatted
from megatron.data.provenance import as_text
from megatron.errors import DataError

NOT_AN_OBJECT = "not a JSON object"
_ABSENT = object()


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used; its number counts from 1 at the start of its chunk."""

    number: int
    reason: str


@dataclass
class Records:
    """What a chunk holds: for each key and each field one list, all of the same length."""

    texts: dict[str, list[Any]]  # strings, or what `why_unusable` let pass
    fields: dict[str, list[str | None]]
    places: list[list[int]] = field(default_factory=list)  # of sentinels, if texts are formatted
    num_read: int = 0
    num_blank: int = 0
    num_formatted: int = 0  # that say where their sentinels are, whether or not that is asked for
    bad: list[BadRecord] = field(default_factory=list)


def parse_chunk(
    chunk: Chunk,
    keys: Sequence[str],
    fields: Sequence[str] = (),
    *,
    formatted: bool = False,
    why_unusable: Callable[[Any], str | None] | None = None,
) -> Records:
    """Give the texts under `keys`, and the values of `fields` as text, None where one is missing.

    A key is a name, or a path of names through objects (`content.text`) where none has that very name. A record counts
    only if it has a string under each key, or what why_unusable finds nothing wrong with, and if formatted, where
    sentinels are in the first one.
    """
    records = Records({key: [] for key in keys}, {name: [] for name in fields})
    rows = arrow_rows(chunk) if chunk.is_arrow else _json_rows(chunk.data)
    columns = [(records.texts[key], key) for key in keys]
    field_columns = [(records.fields[name], name) for name in fields]
    for row in rows:
        records.num_read += 1
        if isinstance(row, dict):
            reason = _why_unusable(row, keys, why_unusable)
            places: Any = row.get(SENTINELS)
            records.num_formatted += isinstance(places, list)
            if reason is None and formatted:
                reason = why_not_formatted(value_under(row, keys[0]), places)
            if reason is None:
                if formatted:
                    records.places.append(places)
                for values, key in columns:
                    values.append(value_under(row, key))
                for found, key in field_columns:
                    found.append(_field_text(chunk, key, value_under(row, key)))
                continue
        elif row is None:
            records.num_blank += 1
            continue
        else:
            reason = row
        records.bad.append(BadRecord(records.num_read, reason))
    if chunk.num_skipped_bytes:
        records.num_read += 1
        records.bad.append(BadRecord(records.num_read, "too long"))
    return records


def value_under(row: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Give what a key names: what has that very name, else what is at the end of a path through objects."""
    value = row.get(key, _ABSENT)
    if value is not _ABSENT or "." not in key:
        return default if value is _ABSENT else value
    value = row
    for name in key.split("."):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return default if value is _ABSENT else value


def _json_rows(data: bytes | bytearray | memoryview) -> Iterator[dict[str, Any] | str | None]:
    """Give each line's value: a dict, None for a blank line, or a string that says what is wrong."""
    for line, is_unended in lines_of(data):
        yield parse_line(line, is_unended)


def lines_of(data: bytes | bytearray | memoryview) -> Iterator[tuple[memoryview, bool]]:
    """Give each line, not copied and without its end, and whether the data ends in it without one."""
    view, start, size = memoryview(data), 0, len(data)
    find = data.find if isinstance(data, bytes | bytearray) else bytes(data).find
    while start < size:
        end = find(b"\n", start)
        is_unended = end < 0
        line = view[start:] if is_unended else view[start:end]
        start = size if is_unended else end + 1
        yield line, is_unended


def parse_line(line: bytes | memoryview, is_unended: bool) -> dict[str, Any] | str | None:
    """Give a line's value: a dict, None for a blank line, or a string that says what is wrong.

    is_unended: whether the file ends in it, without an end of line.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _read_leniently(bytes(line), is_unended)
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def _read_leniently(line: bytes, is_unended: bool) -> dict[str, Any] | str | None:
    """Read what Python's json writes and the standard lacks: NaN, a mark of byte order. Results as of parse_line."""
    if not line.strip():
        return None
    try:
        value = json.loads(line.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return "not UTF-8"
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    except RecursionError:
        return "nested too deep"
    except ValueError:
        return "not JSON, and the file ends in it" if is_unended else "not JSON"
    return value if isinstance(value, dict) else NOT_AN_OBJECT


def arrow_rows(chunk: Chunk) -> Iterator[dict[str, Any] | str]:
    """Give each row's values, or a string that says what is wrong."""
    import pyarrow

    if not len(chunk.data):
        return
    batch = pyarrow.ipc.open_stream(pyarrow.py_buffer(chunk.data)).read_next_batch()
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        # Parquet does not promise that strings are UTF-8: find the rows where they are not.
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield "not UTF-8"


def _why_unusable(
    row: dict[str, Any], keys: Sequence[str], judge: Callable[[Any], str | None] | None
) -> str | None:
    for key in keys:
        value = value_under(row, key, _ABSENT)
        if value is _ABSENT:
            return f"no key {key!r}"
        if judge is None:
            if not isinstance(value, str):
                return f"key {key!r} is not a string"
        elif reason := judge(value):
            return f"key {key!r} holds {reason}"
    return None


def _field_text(chunk: Chunk, name: str, value: Any) -> str | None:
    try:
        return as_text(value)
    except TypeError:
        raise DataError(
            f"input {chunk.part.path}: {name!r} holds {type(value).__name__} values; provenance is text, numbers, "
            "true or false, and lists of these"
        ) from None
