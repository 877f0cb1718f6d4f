"""tools/bench.py measures what it names; its figures are not looked at here."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.forked import run_forked

ROOT = Path(__file__).parents[2]


def bench(*args: str) -> subprocess.CompletedProcess:
    return run_forked("tools/bench.py", "data", *args)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("bench") / "text.jsonl"
    sources = sorted((ROOT / "megatron/data").glob("*.py"))
    path.write_text("".join(json.dumps({"text": file.read_text()}) + "\n" for file in sources))
    return str(path)


def test_rows_are_measured_and_ids_compared(corpus):
    result = bench(
        *("--input", corpus, "--rounds", "1", "--documents", "1000"),
        *("--only", "encode", "open", "fim"),
    )
    assert result.returncode == 0, result.stderr
    table = [line.split("|") for line in result.stdout.splitlines()]
    names = [line[1].strip() for line in table[2:]]
    assert {
        "encode, warm",
        "open 0.001 M documents",
        "fill in the middle, 8K, rate 0.5",
    } <= set(names)
    encoded = next(line for line in table[2:] if line[1].strip() == "encode, cold")
    assert "ids equal to tokenizers'" in encoded[8]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rounds", "0"], "must be above 0"),
        (["--bigcode", "nowhere"], "--bigcode nowhere holds no tools/preprocess_data.py"),
        (["--input", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_line(args, message):
    result = bench(*args)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_faults_is_one_line():
    result = run_forked("tools/bench.py", "faults", "--life", "17")
    assert result.returncode == 2 and "--life 17: give a seed and a number" in result.stderr
    assert result.stderr.count("\n") == 1


def test_faults_are_played_counted_and_written_down(tmp_path):
    out = tmp_path / "faults.json"
    result = run_forked("tools/bench.py", "faults", "--life", "1/1", "--out", out)
    assert result.returncode == 0, result.stderr
    (life,) = json.loads(out.read_text())["lives"]
    num_faults = sum(attempt["has_fired"] for attempt in life["attempts"])
    assert num_faults > 0 and life["problems"] == []
    total = [cell.strip() for cell in result.stdout.split("| all")[1].split("|")]
    assert total[2:7] == [str(num_faults)] * 2 + ["0"] * 3
