"""tools/bench.py attribution measures what it names, and leaves nothing beside the token file."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydivsufsort", reason="pip install pydivsufsort")
pytest.importorskip("megatron.attribution._suffix_search", reason="csrc/ is not compiled: make env")
from tests.attribution.conftest import write
from tests.data.conftest import source_texts, tokenizer, tokenizer_file  # noqa: F401

ROOT = Path(__file__).parents[2]


def bench(*arguments):
    command = [sys.executable, str(ROOT / "tools/bench.py"), "attribution", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_measurement_has_its_line(source_texts, tokenizer, tokenizer_file, tmp_path):  # noqa: F811
    prefix = write(tmp_path / "a", source_texts, tokenizer)
    flags = ("--prefix", prefix, "--tokenizer-file", tokenizer_file, "--folder", tmp_path)
    result = bench(*flags, "--queries", "5", "--look-ups", "1e6", "--starts", "1")
    assert result.returncode == 0, result.stderr
    lines = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert [line[0].lstrip("| ") for line in lines] == [
        *("build membership", "build trace, line starts", "build trace", "build search"),
        *("false positives", "recall of 99 bytes"),
        *("trace, of the data", "trace, a word of each line changed"),
        *("membership, of the data", "membership, a word of each line changed"),
        *("search, 10 lines as it is", "search, 10 lines 2 lines with another name"),
        *("cold start, membership", "cold start, trace"),
    ]
    assert lines[5][1] == "1.0000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.sha256"]


def test_a_mistake_is_one_line():
    result = bench("--prefix", "a")
    assert result.returncode == 2 and "--prefix and --tokenizer-file go together" in result.stderr
    assert result.stderr.count("\n") == 1
