"""What the ledger of an output folder says, all of it in order."""

from pathlib import Path

import pyarrow.parquet as pq

from megatron.curation.run.document import Entry
from megatron.curation.run.ledger import ledger_files


def entries_of(output: Path) -> list[Entry]:
    return [
        Entry(**row) for path in ledger_files(output) for row in pq.read_table(path).to_pylist()
    ]
