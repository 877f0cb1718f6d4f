"""A file is there whole or not at all, whatever happens while it is written."""

import errno
import os
from pathlib import Path

import pytest

from megatron import whole_file
from megatron.whole_file import force_all_to_disk, force_to_disk, publish_whole, replacing


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """What is forced to disk and renamed, in order."""
    seen: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def seen_fsync(descriptor):
        seen.append(f"force {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def seen_replace(path, target):
        seen.append(f"rename {path.name}")
        return replace(path, target)

    def seen_rename(path, target):
        seen.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    monkeypatch.setattr(Path, "rename", seen_rename)
    return seen


def test_content_is_on_disk_before_it_has_the_name_and_the_name_thereafter(tmp_path, steps):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert steps == ["force a.json.tmp", "rename a.json.tmp", f"force {tmp_path.name}"]


def test_a_folder_with_all_in_it_is_on_disk_before_it_takes_the_place_of_another(tmp_path, steps):
    path, aside = tmp_path / "a", tmp_path / "a.tmp"
    for folder, text in ((path, "old"), (aside, "new")):
        (folder / "in").mkdir(parents=True)
        (folder / "in" / text).write_text(text)
    publish_whole(aside, path)
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["a", "in", "new"]
    assert sorted(steps[:3]) == ["force a.tmp", "force in", "force new"]
    assert steps[3:] == ["rename a.tmp", f"force {tmp_path.name}"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_the_block_keeps_the_old_content_and_leaves_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"new")
        raise error
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.json", "old")]


def test_a_full_disk_is_said_of_the_file_that_was_written(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_file.os, "fsync", refuse)
    full = pytest.raises(OSError, match=r"No space left on device: .*a\.json\.tmp")
    with full, replacing(tmp_path / "a.json") as file:
        file.write(b"new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=f"No space left on device: .*{tmp_path.name}"):
        force_to_disk(tmp_path)


def test_a_folder_is_forced_with_all_that_is_in_it(tmp_path, steps):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a").write_text("a")
    (tmp_path / "b").write_text("b")
    force_all_to_disk(tmp_path)
    assert sorted(steps[:-1]) == ["force a", "force b", "force inner"]
    assert steps[-1] == f"force {tmp_path.name}"
    force_all_to_disk(tmp_path / "b")
    assert steps[-1] == "force b"
