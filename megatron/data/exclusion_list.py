"""Opt-out lists as they are written: JSON objects, one a line, each naming documents that must not be read.

    {"repo": "octocat/hello"}                           every document whose provenance says this
    {"repo": "octocat/hello", "path": "a.py"}           all the fields of a line must hold
    {"dataset": "py_text_document", "repo": "x/y"}      in one token file only
    {"dataset": "py_text_document", "document": 17}     one document by its number, from 0

Reads and checks the lines, each error with its place. Knows nothing of token files: `megatron.data.exclusion`
applies lists to them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron.data.provenance import as_text
from megatron.errors import DataError


@dataclass
class FieldLines:
    """The lines of a list that name the same fields of the same token files: a table, a row for each line."""

    dataset: str | None  # None for all
    columns: dict[str, list[str | None]]
    places: list[int] = field(default_factory=list)  # of the lines in the file, from 1


@dataclass
class ExclusionList:
    """One list."""

    path: Path
    sha256: str = ""  # of the file
    num_lines: int = 0  # that name something
    by_field: dict[tuple[str | None, tuple[str, ...]], FieldLines] = field(default_factory=dict)
    by_number: dict[str, dict[int, int]] = field(default_factory=dict)  # dataset, document: place


def read_exclusion_list(path: Path) -> ExclusionList:
    """Read a list. Raises DataError, naming the line, for what is no object or names nothing that can be found."""
    result = ExclusionList(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for place, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    result.num_lines += 1
                    _add(result, _parse(line, f"{path}:{place}"), place)
    except OSError as error:
        raise DataError(f"--exclude-documents {path}: {error.strerror}") from None
    if not result.num_lines:
        raise DataError(
            f'--exclude-documents {path} names no document; write lines such as {{"repo": "octocat/hello"}}, '
            "or leave the option out"
        )
    result.sha256 = digest.hexdigest()
    return result


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON: {error}; nothing of the list was applied. Correct the line, or remove it"
        ) from None
    if not isinstance(entry, dict) or not entry:
        raise DataError(
            f'{where} names no document; a line is an object such as {{"repo": "octocat/hello"}}'
        )
    # Of a key that comes twice the parser keeps the last; the first would be left in without a word.
    if line.count(b":") > len(entry) and len(json.loads(line, object_pairs_hook=list)) > len(entry):
        raise DataError(f"{where} has a key twice; write a line for each value")
    return entry


def _add(result: ExclusionList, entry: dict[str, Any], place: int) -> None:
    """File a line under what it names."""
    where = f"{result.path}:{place}"
    dataset = entry.pop("dataset", None)
    if dataset is not None and not isinstance(dataset, str):
        raise DataError(
            f'{where}: "dataset" is {dataset!r}; give the prefix of a token file, or its last part'
        )
    if "document" in entry:
        document = entry.pop("document")
        if dataset is None or entry or type(document) is not int or document < 0:
            raise DataError(
                f'{where}: a document by number is {{"dataset": "py_text_document", "document": 17}}: '
                "both of these, counted from 0, and nothing else"
            )
        result.by_number.setdefault(dataset, {}).setdefault(document, place)
        return
    if not entry:
        raise DataError(
            f"{where} names all of {dataset}; to train without it, leave it out of the data options"
        )
    fields = tuple(sorted(entry))
    lines = result.by_field.get((dataset, fields))
    if lines is None:
        lines = FieldLines(dataset, {name: [] for name in fields})
        result.by_field[dataset, fields] = lines
    for name in fields:
        lines.columns[name].append(as_text(entry[name]))
    lines.places.append(place)
