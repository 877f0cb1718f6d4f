"""What a run says of its losses is read back by one reader."""

import json
import math
from pathlib import Path

import pytest

from megatron.errors import DataError
from megatron.metrics_file import read_losses


def write(path: Path, *lines: object, end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def test_lines_of_losses_are_read_and_those_of_other_things_passed_over(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"iteration": 0, "validation": "ruby", "lm_loss": None, "ppl": None},
        {"iteration": 1, "lm_loss": 2.5, "grad_norm": 1.0},
        {"iteration": 1, "source": "train/ruby", "samples": 4},
        end='{"iteration": 2, "lm_l',  # of a run that was killed
    )
    first, second = read_losses(path)
    assert (first.iteration, first.validation) == (0, "ruby") and math.isnan(first.loss)
    assert (second.iteration, second.validation, second.loss) == (1, None, 2.5)
    assert second.values["grad_norm"] == 1.0


@pytest.mark.parametrize(
    "line",
    [
        [],
        "text",
        {"lm_loss": 2.0},
        {"iteration": -1, "lm_loss": 2.0},
        {"iteration": 1.5, "lm_loss": 2.0},
        {"iteration": 1, "lm_loss": "2.0"},
        {"iteration": 1, "lm_loss": 10**400},
    ],
)
def test_a_line_that_no_run_writes_is_named(tmp_path, line):
    good = {"iteration": 1, "lm_loss": 2.0}
    with pytest.raises(DataError, match="line 2 is no record of a run"):
        list(read_losses(write(tmp_path / "metrics.jsonl", good, line, good)))


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"model\.bin is not text"):
        list(read_losses(tmp_path / "model.bin"))
