"""Names of checkpoints, the tracker, and a save that dies at every step."""

import errno
import os
import sys
from unittest import mock

import pytest
import torch

from megatron.checkpoint.layout import (
    TRACKER,
    checkpoint_folder,
    find_checkpoint,
    latest_iteration,
    saved_iterations,
)
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save import save_checkpoint
from megatron.errors import CheckpointError

DIED = 9
DISK_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def save_value(root, iteration, value):
    tensors = {
        "model.a": torch.full((3,), float(value)),
        "model.b": torch.full((2,), -float(value)),
    }
    return save_checkpoint(root, iteration, tensors, state={"value": value}, config={})


def load_value(root):
    """The one value that a checkpoint of `save_value` holds everywhere."""
    folder = checkpoint_folder(root, latest_iteration(root))
    tensors = {"model.a": torch.zeros(3), "model.b": torch.zeros(2)}
    load_checkpoint(folder, tensors)
    value = CheckpointReader.open(folder).state["value"]
    assert tensors["model.a"].tolist() == [value] * 3
    assert tensors["model.b"].tolist() == [-value] * 2
    return value


def die_while_saving(root, iteration, value, step):
    """Save in a child process that dies before its step-th access to the disk. False if it lived to the end."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event, args):
            nonlocal left
            if event in DISK_EVENTS and str(root) in str(args[0]):
                left -= 1
                if left == 0:
                    os._exit(DIED)

        sys.addaudithook(count)
        try:
            save_value(root, iteration, value)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == DIED


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 2)], ids=["next", "same iteration"])
def test_death_at_any_step_leaves_a_complete_checkpoint(tmp_path, old, new):
    step, seen = 0, []
    is_dead = True
    while is_dead:
        step += 1
        root = tmp_path / str(step)
        save_value(root, old, 10)
        is_dead = die_while_saving(root, new, 20, step)
        seen.append(load_value(root))
        save_value(root, new, 30)
        assert load_value(root) == 30
        assert {path.name for path in root.iterdir()} == {
            f"iter_{iteration:07d}" for iteration in (old, new)
        } | {TRACKER}
    assert step > 12, "the audit hook saw too little of the save"
    assert seen == sorted(seen), "a new checkpoint was seen and then lost"
    assert set(seen) == {10, 20}


def test_death_in_the_very_first_save_leaves_none_or_a_complete_one(tmp_path):
    for step in range(1, 12):
        root = tmp_path / str(step)
        die_while_saving(root, 1, 20, step)
        assert latest_iteration(root) is None or load_value(root) == 20


def test_death_while_a_replacement_is_put_right_loses_nothing(tmp_path):
    for step in range(1, 8):
        root = tmp_path / str(step)
        folder = save_value(root, 2, 10)
        folder.rename(root / "iter_0000002.old")  # as a crash between the two renames leaves it
        assert load_value(root) == 10
        assert find_checkpoint(root).name == "iter_0000002.old"
        die_while_saving(root, 4, 20, step)
        assert load_value(root) in (10, 20)


def test_leftovers_of_dead_saves_go_and_strangers_stay(tmp_path):
    save_value(tmp_path, 1, 10)
    for name in ("iter_0000002.tmp-0123abcd", "iter_0000003.tmp-mine", "notes", "iter_5.old"):
        (tmp_path / name / "inside").mkdir(parents=True)
    save_value(tmp_path, 4, 20)
    assert not (tmp_path / "iter_0000002.tmp-0123abcd").exists()
    for name in ("iter_0000003.tmp-mine", "notes", "iter_5.old"):
        assert (tmp_path / name / "inside").exists()
    assert saved_iterations(tmp_path) == [1, 4]


def test_what_cannot_be_removed_is_left_and_the_save_counts(tmp_path):
    save_value(tmp_path, 2, 10)
    (tmp_path / "iter_0000003.tmp-0123abcd").mkdir()
    busy = OSError(
        errno.ENOTEMPTY, "Directory not empty"
    )  # files that a dying process has open, over NFS
    with mock.patch("os.rmdir", side_effect=busy):
        save_value(tmp_path, 2, 20)
    assert load_value(tmp_path) == 20
    assert (tmp_path / "iter_0000002.old").exists()
    save_value(tmp_path, 4, 30)
    assert saved_iterations(tmp_path) == [2, 4]
    assert not list(tmp_path.glob("*.*-*")) + list(tmp_path.glob("*.old"))


def test_a_folder_without_tracker_has_no_latest(tmp_path):
    assert latest_iteration(tmp_path) is None
    assert latest_iteration(tmp_path / "missing") is None


@pytest.mark.parametrize("text", [b"", b"two", b"-3", b"1.5", b"\x00\xff", b"1 2", b"9" * 40])
def test_a_garbage_tracker_is_an_error(tmp_path, text):
    (tmp_path / TRACKER).write_bytes(text)
    with pytest.raises(CheckpointError, match="not the number of an iteration"):
        latest_iteration(tmp_path)


def test_a_tracker_that_names_no_folder_offers_those_there(tmp_path):
    save_value(tmp_path, 3, 10)
    (tmp_path / TRACKER).write_text("7\n")
    with pytest.raises(CheckpointError, match=r"iteration 7 .* has checkpoints of iterations 3"):
        latest_iteration(tmp_path)


def test_find_checkpoint_takes_a_root_an_iteration_or_a_folder(tmp_path):
    first, second = save_value(tmp_path, 3, 10), save_value(tmp_path, 12345678, 20)
    assert find_checkpoint(tmp_path) == second == tmp_path / "iter_12345678"
    assert find_checkpoint(tmp_path, 3) == find_checkpoint(first) == first
    for path, iteration, words in (
        (tmp_path, 4, "iteration 4"),
        (first, 3, "leave the iteration out"),
        (tmp_path / "none", None, "not a folder"),
        (first.parent.parent / "empty", None, "holds no checkpoint"),
    ):
        (tmp_path.parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=words):
            find_checkpoint(path, iteration)
