import gzip
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from megatron.errors import DataError
from megatron.evaluation.row_file import RowWriter, read_rows

ROWS = [{"task": "é"}, {"task": "b", "lines": "1\n2"}]


def test_rows_are_added_behind_those_of_a_run_that_was_killed_in_the_midst_of_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + '{"task": "to')
    writer = RowWriter(path)
    writer.add(ROWS[1])
    assert [row for _, row in read_rows(path)] == ROWS  # before it is closed
    writer.close()


@pytest.mark.parametrize("left", ["", '{"task": "to', '{"task": "old"}\n'])
def test_a_file_can_be_begun_anew(tmp_path, left):
    path = tmp_path / "rows.jsonl"
    path.write_text(left)
    writer = RowWriter(path)
    writer.clear()
    writer.add(ROWS[0])
    writer.close()
    assert path.read_text() == json.dumps(ROWS[0]) + "\n"


def test_gzip_and_parquet_hold_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"task": "é"}, {"task": "b"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.parquet"):
        assert list(read_rows(tmp_path / name)) == [(1, rows[0]), (2, rows[1])]


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
def test_parquet_is_read_without_pandas(tmp_path):
    """Which takes a second to import."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"task": "é"}]), tmp_path / "a.parquet")
    script = f"""
import sys
from pathlib import Path
from megatron.evaluation.row_file import read_rows
print(list(read_rows(Path({str(tmp_path / "a.parquet")!r}))), "pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == "[(1, {'task': 'é'})] False\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n\n[2]\n', "line 3 holds no object"),
        (b'{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        (b"\xff\n", "is damaged"),
        (gzip.compress(b"{}\n", mtime=0)[:-6], "is damaged"),
        (b"PAR1 and no more", "is damaged"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, content, words):
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(DataError, match=f"rows.* {words}"):
        list(read_rows(tmp_path / "rows"))
