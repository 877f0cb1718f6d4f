"""Curves are called as their run is."""

from pathlib import Path

import pytest

from megatron.training.curves import name_of_run, read_curves


@pytest.mark.parametrize("folder", ["py", "py/checkpoints"])
def test_a_run_is_named_by_its_folder_and_not_by_that_of_its_checkpoints(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    metrics = tmp_path / folder / "metrics.jsonl"
    metrics.write_text('{"iteration": 1, "lm_loss": 2.0}\n')
    assert name_of_run(metrics.parent) == read_curves(metrics).name == "py"
