"""Without csrc/ tools start, show their help, and name what is missing in one line when it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.attribution.conftest import write
from tests.data.conftest import source_texts, tokenizer, tokenizer_file  # noqa: F401

ROOT = Path(__file__).parents[2]
PARTS = ("attribution._fingerprints", "attribution._suffix_search", "curation._minhash")
ALL_PARTS = (*PARTS, "curation._multi_search", "data._helpers", "tokenizer._byte_pair")


def run(parts, tool, *arguments):
    """Run a tool as if these parts of csrc/ were not compiled."""
    hidden = {f"megatron.{part}": None for part in parts}
    code = (
        f"import runpy, sys; sys.modules.update({hidden}); sys.argv[0] = {tool!r}; "
        f"runpy.run_path('tools/{tool}', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("tool", ["attribute.py", "bench.py", "generate.py", "serve.py"])
def test_help_needs_nothing_of_csrc(tool):
    result = run(ALL_PARTS, tool, "--help")
    assert result.returncode == 0 and "examples" in result.stdout, result.stderr


def test_a_bench_needs_only_what_it_measures():
    assert run(PARTS, "bench.py", "train", "--help").returncode == 0
    assert "example" in run((), "bench.py", "attribution", "--help").stdout


@pytest.mark.parametrize("part", ["attribution._fingerprints", "tokenizer._byte_pair"])
def test_a_missing_part_is_a_line_that_says_make_env(part, tmp_path, tokenizer, tokenizer_file):  # noqa: F811
    prefix = write(tmp_path / "a", ["x = 1\n"], tokenizer)
    flags = ("--kinds", "membership", "--tokenizer-file", tokenizer_file)
    result = run([part], "attribute.py", "build", prefix, *flags)
    assert result.returncode == 2
    assert result.stderr == (
        f"attribute.py: error: megatron.{part} is not compiled; run `make env`, or `pip install -e .` in the "
        "repository\n"
    )
