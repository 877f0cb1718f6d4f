"""Opt-out lists applied to the token files of a run: which documents of each are not read.

A document is excluded if any line of any list names it. Nothing is left in silently: a line that cannot be decided
for a token file, since that has no provenance or lacks a field, is an error unless the user said to pass over the
file; lines that name no document at all are counted aloud. The side files are searched a batch at a time, so memory
is that of the lists and of what they exclude. Knows nothing of samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from megatron.data import arrow_array
from megatron.data.exclusion_list import ExclusionList, FieldLines, read_exclusion_list
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.provenance import Provenance
from megatron.data.token_range import NO_RUNS, Runs, join_runs, token_positions
from megatron.errors import DataError
from megatron.logging import get_logger

logger = get_logger(__name__)

NUM_NAMED = 5  # lines that are named one by one; the others are counted


@dataclass(frozen=True)
class Exclusions:
    """What the lists of a run come to."""

    runs: Mapping[str, Runs]  # by prefix; documents of a token file that are not read
    sha256: tuple[str, ...]  # of each list

    def of(self, prefix: str) -> Runs:
        """Give what is excluded of a token file."""
        return self.runs.get(prefix, NO_RUNS)


def exclude_documents(
    paths: Sequence[str], datasets: Mapping[str, IndexedDataset], *, skipped: Sequence[str] = ()
) -> Exclusions:
    """Read the lists and find what they name in token files, given by prefix. Logs a line for each file.

    Token files of `skipped`, by prefix or its last part, may lack what lines name. Raises DataError for a list that
    is malformed or cannot be applied.
    """
    if not paths:
        return Exclusions({}, ())
    files = _TokenFiles(datasets, skipped)
    lists = [read_exclusion_list(Path(path)) for path in paths]
    by_list = [_apply(entries, files) for entries in lists]
    for prefix, indexed in datasets.items():
        counts = [
            f"{_count(indexed, found[prefix])} by {entries.path}"
            for entries, found in zip(lists, by_list, strict=True)
        ]
        logger.info("%s: excluded %s", prefix, "; ".join(counts))
    runs = {
        prefix: join_runs(np.concatenate([found[prefix] for found in by_list]))
        for prefix in datasets
    }
    return Exclusions(runs, tuple(entries.sha256 for entries in lists))


def _apply(entries: ExclusionList, files: _TokenFiles) -> dict[str, Runs]:
    """Give the documents that one list names, for each token file."""
    found: dict[str, list[Runs]] = defaultdict(lambda: [NO_RUNS])
    unmatched: list[int] = []
    for name, documents in entries.by_number.items():
        prefix = files.find(name, f"{entries.path}:{min(documents.values())}")
        if prefix is None:
            unmatched += documents.values()
            continue
        for document, place in documents.items():
            files.check_number(prefix, document, f"{entries.path}:{place}")
        found[prefix].append(_runs_of(np.array(sorted(documents), np.int64)))
    for lines in entries.by_field.values():
        search = _Search(lines)
        for prefix, provenance in files.having(lines, f"{entries.path}:{lines.places[0]}"):
            found[prefix].append(search(provenance))
        unmatched += search.unmatched()
    if unmatched:
        shown = ", ".join(map(str, sorted(unmatched)[:NUM_NAMED]))
        logger.info(
            "%s: ATTENTION: %d of its %d lines name no document of this run: %s %s%s",
            entries.path,
            len(unmatched),
            entries.num_lines,
            "line" if len(unmatched) == 1 else "lines",
            shown,
            ", …" if len(unmatched) > NUM_NAMED else "",
        )
    return {prefix: join_runs(np.concatenate(found[prefix])) for prefix in files.prefixes}


class _TokenFiles:
    """The token files of a run, by the names that lines give them, with their provenance."""

    def __init__(self, datasets: Mapping[str, IndexedDataset], skipped: Sequence[str]) -> None:
        self.prefixes = tuple(datasets)
        self._num_documents = {name: one.num_documents for name, one in datasets.items()}
        self._skipped = frozenset(skipped)
        self._provenance = {
            prefix: Provenance.open(prefix, num_documents=indexed.num_documents)
            for prefix, indexed in datasets.items()
        }

    def find(self, name: str, where: str) -> str | None:
        """Give the prefix that a line means; None if the run has no such token file and may do without."""
        meant = [prefix for prefix in self.prefixes if name in _names(prefix)]
        if name in self.prefixes:
            meant = [name]
        if len(meant) == 1:
            return meant[0]
        if not meant and name in self._skipped:
            return None
        if not meant:
            raise DataError(
                f"{where}: this run reads no token file {name!r}, but {', '.join(self.prefixes)}; correct it, or "
                f"add --exclude-documents-skip {name} if it belongs to other runs"
            )
        raise DataError(
            f"{where}: {name!r} is the last part of {' and '.join(meant)}; give the whole prefix"
        )

    def check_number(self, prefix: str, document: int, where: str) -> None:
        """Raise DataError if a token file has no document of this number."""
        if document >= self._num_documents[prefix]:
            raise DataError(
                f"{where}: {prefix} has no document {document}; its {self._num_documents[prefix]} are counted from 0"
            )

    def having(self, lines: FieldLines, where: str) -> list[tuple[str, Provenance]]:
        """Give the token files that lines apply to. Raises DataError if that cannot be told."""
        prefixes = self.prefixes
        if lines.dataset is not None:
            prefix = self.find(lines.dataset, where)
            prefixes = () if prefix is None else (prefix,)
        if not prefixes:
            return []
        known = {name for one in self._provenance.values() if one for name in one.fields}
        for name in lines.columns:
            if name not in known:
                has = f"they have {', '.join(sorted(known))}" if known else "they have none"
                raise DataError(
                    f"{where}: no token file of this run has a provenance field {name!r} ({has}); correct it, or "
                    f"preprocess with --provenance-keys {' '.join(lines.columns)}"
                )
        result = []
        for prefix in prefixes:
            provenance = self._provenance[prefix]
            missing = [n for n in lines.columns if provenance is None or n not in provenance.fields]
            if provenance is not None and not missing:
                result.append((prefix, provenance))
            elif not self._skipped & _names(prefix):
                raise DataError(
                    f"{where}: {prefix} has no provenance field {' nor '.join(missing)}, so that it cannot be told "
                    "which of its documents this names; preprocess it with --provenance-keys, restrict such lines to "
                    f'other files by "dataset", or add --exclude-documents-skip {Path(prefix).name} to read all of it'
                )
        return result


class _Search:
    """Lines with the same fields, ready to be looked up: each distinct one has a code."""

    def __init__(self, lines: FieldLines) -> None:
        self._fields = tuple(lines.columns)
        self._num_lines = len(lines.places)
        self._values: list[pa.Array] = []  # of each field, each once
        # Of each field but the first: which values it has with what came before, as code of that * (its values) + value.
        # The rank of a combination is the code of it.
        self._combinations: list[npt.NDArray[np.int64]] = []
        codes: npt.NDArray[np.int64] = np.zeros(self._num_lines, np.int64)
        for number, column in enumerate(lines.columns.values()):
            encoded = arrow_array.texts(column).dictionary_encode(null_encoding="encode")
            self._values.append(encoded.dictionary)
            codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
            if number > 0:
                combinations, codes = np.unique(codes, return_inverse=True)
                self._combinations.append(combinations)
        _, first = np.unique(codes, return_index=True)
        self._places = np.array(lines.places)[first]  # of each code
        self._is_matched = np.zeros(len(first), bool)

    def __call__(self, provenance: Provenance) -> Runs:
        """Give the documents whose fields some line names."""
        runs, start = [NO_RUNS], 0
        for table in self._tables(provenance):
            runs.append(_runs_of(start + self._rows(table)))
            start += len(table)
        return join_runs(np.concatenate(runs))

    def unmatched(self) -> list[int]:
        """Give the places of lines that no call matched; of equal lines the first."""
        return [int(place) for place in self._places[~self._is_matched]]

    def _tables(self, provenance: Provenance) -> Iterator[pa.Table]:
        """Give rows in parts that outnumber the lines by far: their values are hashed anew for each part."""
        batches: list[pa.RecordBatch] = []
        num_rows = 0
        for batch in provenance.batches(self._fields):
            batches.append(batch)
            num_rows += len(batch)
            if num_rows > 4 * self._num_lines:
                yield pa.Table.from_batches(batches)
                batches, num_rows = [], 0
        if batches:
            yield pa.Table.from_batches(batches)

    def _rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Give the rows of a table that some line names."""
        rows, codes = _look_up(table.column(self._fields[0]), self._values[0])
        for name, values, combinations in zip(
            self._fields[1:], self._values[1:], self._combinations, strict=True
        ):
            hits, numbers = _look_up(
                table.column(name).take(arrow_array.numbers(rows, np.int64)), values
            )
            rows, keys = rows[hits], codes[hits] * len(values) + numbers
            places = np.searchsorted(combinations, keys).clip(max=len(combinations) - 1)
            is_named = combinations[places] == keys
            rows, codes = rows[is_named], places[is_named]
        self._is_matched[codes] = True
        return rows


def _look_up(
    column: pa.ChunkedArray, values: pa.Array
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give the rows of a column that hold one of some values, and the number of that value for each."""
    found = pc.index_in(column, value_set=values)  # null where it is none of them
    if found.null_count == len(found):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    numbers = found.fill_null(-1).to_numpy()
    (rows,) = np.nonzero(numbers >= 0)
    return rows, numbers[rows].astype(np.int64)


def _names(prefix: str) -> set[str]:
    return {prefix, Path(prefix).name}


def _runs_of(documents: npt.NDArray[np.int64]) -> Runs:
    """Give ascending numbers as runs."""
    if not len(documents):
        return NO_RUNS
    (ends,) = np.nonzero(np.diff(documents) > 1)
    first = documents[np.append(0, ends + 1)]
    return np.stack([first, documents[np.append(ends, len(documents) - 1)] + 1], axis=1)


def _count(indexed: IndexedDataset, runs: Runs) -> str:
    edges = token_positions(indexed, runs)
    num_documents, num_tokens = (int((r[:, 1] - r[:, 0]).sum()) for r in (runs, edges))
    return f"{num_documents:,} documents, {num_tokens:,} tokens"
