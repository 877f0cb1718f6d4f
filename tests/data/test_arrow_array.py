"""Arrays made of buffers are those that pyarrow makes, and nothing here imports pandas."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megatron.data import arrow_array
from megatron.data.arrow_array import numbers, texts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "values", [[], [None], ["a"], ["", "é\0", None, "x" * 300, "😀"], ["a"] * 9, [None] * 9 + ["b"]]
)
def test_texts_are_the_array_that_pyarrow_makes(values):
    made = texts(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))


def test_numbers_are_the_array_that_pyarrow_makes():
    for values, dtype, kind in [
        ([], np.int64, pa.int64()),
        ([1, None, -(1 << 62)], np.int64, pa.int64()),
        ([None, 0.5, 3, None, float("inf")], np.float64, pa.float64()),
        (np.arange(20)[::3], np.int64, pa.int64()),
    ]:
        made = numbers(values, dtype)
        made.validate(full=True)
        assert made.equals(pa.array(values, kind))


def test_text_that_no_array_holds_is_an_error_of_arrow(monkeypatch):
    monkeypatch.setattr(arrow_array, "MOST_BYTES", 3)
    with pytest.raises(pa.ArrowInvalid, match="4 bytes of text"):
        texts(["ab", "cd"])
    assert texts(["ab", "c"]).to_pylist() == ["ab", "c"]


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
def test_a_run_of_curation_does_not_import_pandas(tmp_path):
    """Which takes each worker 0.2 s and 50 MB."""
    pytest.importorskip("megatron.curation._minhash", reason="csrc/ is not compiled: make env")
    rows = [{"text": f"def f{n}(x): return x + {n}", "id": str(n), "repo": "r"} for n in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = """
import sys
from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.run import pool
from megatron.curation.run.document import Drop, Keep, Stage
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.data.preprocessing.chunk_encoder import provenance_columns
from megatron.data.preprocessing.documents import Documents
import numpy as np

class Here:
    def __init__(self, function, num_workers):
        self.function = function
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def map(self, tasks):
        return map(self.function, tasks)

pool.Workers = Here
stage = Stage("odd", lambda d: Drop("odd", 1.5) if int(d.id) % 2 else Keep(d), {})
options = RunOptions((sys.argv[1] + "/a.jsonl",), sys.argv[1] + "/out")
print(run_steps([stage, dedup_comparison(DedupConfig())], options).kept())
columns = provenance_columns({"repo": ["r", None]}, np.ones(2, np.bool_))
Documents(np.arange(2), np.ones(2, np.int64), np.ones(2, np.int64), columns).take(np.array([1, 0]))
print("pandas" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["5", "False"]
