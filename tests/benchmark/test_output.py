"""What a measurement writes lies where it was asked for, or an error says that it cannot."""

import json

import pytest

from megatron.benchmark.output import write_json
from megatron.errors import ConfigError


def test_all_figures_go_to_a_new_folder(tmp_path):
    write_json("--json", tmp_path / "new/figures.json", {"format": 1, "rows": [0.5]})
    assert json.loads((tmp_path / "new/figures.json").read_text()) == {"format": 1, "rows": [0.5]}
    write_json("--json", None, {})


def test_a_file_that_cannot_be_written_is_named_with_its_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^--out .*file/figures.json cannot be written: "):
        write_json("--out", tmp_path / "file/figures.json", {})
