"""The ledger: for every document the stage, rule and value that kept, changed or dropped it. Parquet, a file a shard.

Columns: id, language, num_bytes (of the text as it stood), stage, verdict (kept, dropped, changed), rule, value,
detail. A document has one line that ends it, kept or dropped, after one for each change. Any program that reads
Parquet reads it; `find_entries` answers for one id. Knows nothing of how decisions are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron.curation.run.document import Entry
from megatron.data.arrow_array import numbers, texts
from megatron.data.publish import sync
from megatron.data.shards import natural_key
from megatron.errors import DataError

FOLDER = "ledger"
GROUP_ROWS = 1 << 16
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("num_bytes", pa.int64()),
        ("stage", pa.string()),
        ("verdict", pa.string()),
        ("rule", pa.string()),
        ("value", pa.float64()),
        ("detail", pa.string()),
    ]
)
UNREADABLE = (pa.ArrowException, OSError)


class LedgerWriter:
    """Writes the entries of a shard in their order; the caller publishes the file by rename."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file, SCHEMA, compression="zstd", write_page_checksum=True
        )
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Append one decision."""
        self._entries.append(entry)
        if len(self._entries) == GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is pending and force the file to disk."""
        self._flush()
        self._writer.close()
        sync(self._file)
        self._file.close()

    def _flush(self) -> None:
        if self._entries:
            self._writer.write_batch(_batch(self._entries))
        self._entries = []


def size_of(entries: Sequence[Entry]) -> int:
    """Give the bytes that entries take."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([_batch(entries)]), sink, compression="zstd")
    size: int = sink.getvalue().size
    return size


def _batch(entries: Sequence[Entry]) -> pa.RecordBatch:
    columns = zip(*entries, strict=True) if entries else [()] * len(SCHEMA)
    arrays = [
        texts(values)
        if field.type == pa.string()
        else numbers(values, np.int64 if field.type == pa.int64() else np.float64)
        for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def ledger_files(output: Path) -> list[Path]:
    """Give the ledger of an output folder: passes in order, shards in order."""
    files = sorted((output / FOLDER).glob("*.parquet"), key=natural_key)
    if not files:
        raise DataError(f"{output} holds no ledger; give a folder that tools/curate.py wrote")
    return files


def find_entries(output: Path, id: str) -> list[Entry]:
    """Give what is said of one document, in the order it was decided. Reads the ids alone where it is not."""
    found = []
    for path in ledger_files(output):
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, columns=["id"]).column("id")
                    mask = pc.equal(ids, id)
                    if pc.any(mask).as_py():
                        rows = file.read_row_group(group).filter(mask).to_pylist()
                        found += [Entry(**row) for row in rows]
        except UNREADABLE as error:
            raise DataError(f"ledger {path} is damaged: {error}; run that stage again") from error
    return found


def example_ids(output: Path, like: str, count: int = 2) -> list[str]:
    """Give ids of a ledger: the first ones that hold a text, or the first ones if none does."""
    first: dict[str, None] = {}
    alike: dict[str, None] = {}
    for path in ledger_files(output):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(GROUP_ROWS, columns=["id"]):
                    ids = batch.column("id")
                    first |= dict.fromkeys(ids.slice(0, count).to_pylist())
                    found = ids.filter(pc.match_substring(ids, like, ignore_case=True))
                    alike |= dict.fromkeys(found.slice(0, count).to_pylist())
                    if len(alike) >= count:
                        return [*alike][:count]
        except UNREADABLE as error:
            raise DataError(f"ledger {path} is damaged: {error}; run that stage again") from error
    return [*(alike or first)][:count]


def why(output: Path, id: str) -> list[tuple[Path, Entry]]:
    """Give every decision about a document, from the first stage on: outputs that were read are asked first."""
    answers: list[tuple[Path, Entry]] = []
    for folder in _inputs(output):
        answers += why(folder, id)
    return answers + [(output, entry) for entry in find_entries(output, id)]


def describe(entry: Entry) -> str:
    """Say one decision in a line."""
    words = f"{entry.verdict} by {entry.stage}"
    if entry.rule:
        words += f": {entry.rule}"
    if entry.value is not None:
        words += f" = {entry.value:.6g}"
    if entry.detail:
        words += f" ({entry.detail})"
    return f"{words}; {entry.num_bytes:,} bytes" + (f" of {entry.language}" * bool(entry.language))


def _inputs(output: Path) -> list[Path]:
    """Give the folders with a ledger that an output was made from and that are still there."""
    try:
        run = orjson.loads((output / "run.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    folders = [Path(path) for path in run.get("inputs", [])]
    return [folder for folder in folders if (folder / FOLDER).is_dir()]
