"""Folders that appear complete or not at all."""

import pytest

from megatron.convert.output_folder import new_folder
from megatron.errors import ConfigError


def fill(path, may_replace=None, text="new"):
    with new_folder(path, may_replace) as folder:
        (folder / "a").write_text(text)
        assert not path.exists() or not (path / "a").exists() or text != (path / "a").read_text()


def test_the_folder_appears_at_the_end_and_leaves_nothing_beside_it(tmp_path):
    fill(tmp_path / "x" / "out")
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty")
    assert (tmp_path / "x" / "out" / "a").read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"x", "out", "empty", "a"}


def test_a_failure_leaves_neither_folder_nor_traces(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", None) as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_is_replaced_only_where_that_is_allowed(tmp_path):
    out = tmp_path / "out"
    fill(out, text="old")
    with pytest.raises(ConfigError, match="--overwrite"):
        fill(out)
    with pytest.raises(ConfigError, match="is none"):
        fill(out, lambda path: False)
    assert (out / "a").read_text() == "old"
    fill(out, lambda path: path == out)
    assert (out / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        fill(tmp_path / "out", lambda path: True)
