"""Deleting old checkpoints: only behind a newer one that was read back, and never leaving none that is whole."""

import os
import shutil
import sys
import threading
from unittest import mock

import pytest
import torch

from megatron.checkpoint.layout import TRACKER, saved_iterations
from megatron.checkpoint.retention import (
    Retention,
    RetentionPolicy,
    delete_retired,
    retire_obsolete,
)
from megatron.checkpoint.save import save_checkpoint
from megatron.checkpoint.verify import verify_files
from tests.checkpoint.test_layout import DIED, DISK_EVENTS


def save(root, *iterations):
    for iteration in iterations:
        tensors = {"model.a": torch.full((300,), float(iteration))}
        save_checkpoint(root, iteration, tensors, state={"iteration": iteration}, config={})


@pytest.mark.parametrize(
    ("keep_last", "interval", "whole", "gone"),
    [
        (1, None, 50, [10, 20, 30, 40]),
        (2, None, 50, [10, 20, 30]),
        (9, None, 50, []),
        (1, 20, 50, [10, 30]),
        (2, 30, 50, [10, 20]),
        (1, None, 30, [10, 20]),  # 40 and 50 are not known to be whole, and count for nothing
        (2, None, 30, [10]),
    ],
)
def test_what_may_go(keep_last, interval, whole, gone):
    iterations = [50, 0, 30, 10, 40, 20]
    assert RetentionPolicy(keep_last, interval).obsolete(iterations, whole) == gone


def test_older_ones_go_behind_a_run_whatever_their_clocks_say(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    for iteration in (1, 2, 3, 4):
        os.utime(tmp_path / f"iter_000000{iteration}", (1e9 - iteration, 1e9 - iteration))
    retention = Retention(tmp_path, RetentionPolicy(2))
    retention.published(4)
    assert retention.wait(60)
    assert {path.name for path in tmp_path.iterdir()} == {"iter_0000003", "iter_0000004", TRACKER}


def test_what_a_dead_run_began_to_delete_goes_though_nothing_new_is_published(tmp_path):
    save(tmp_path, 1, 2)
    retire_obsolete(tmp_path, RetentionPolicy(1), 2)
    assert any(".deleted-" in path.name for path in tmp_path.iterdir())
    Retention(tmp_path, RetentionPolicy(1)).clear()
    assert {path.name for path in tmp_path.iterdir()} == {"iter_0000002", TRACKER}


def test_every_file_is_read_from_disk_and_not_from_what_the_system_remembers(tmp_path):
    save(tmp_path, 1, 2)
    retention = Retention(tmp_path, RetentionPolicy(1))
    with mock.patch("megatron.checkpoint.retention.forget_cached") as forget:
        retention.published(2)
        assert retention.wait(60)
    forgotten = {call.args[0] for call in forget.call_args_list}
    assert forgotten == set((tmp_path / "iter_0000002").iterdir())


def test_nothing_goes_if_the_new_one_does_not_read_back(tmp_path, caplog):
    save(tmp_path, 1, 2, 3)
    path = tmp_path / "iter_0000003" / "rank_00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    retention = Retention(tmp_path, RetentionPolicy(1))
    with caplog.at_level("WARNING", "megatron"):
        retention.published(3)
        assert retention.wait(60)
    assert saved_iterations(tmp_path) == [1, 2, 3]
    assert "are kept: " in caplog.text and "rank_00000.safetensors is damaged" in caplog.text
    save(tmp_path, 4)
    retention.published(4)
    assert retention.wait(60)
    assert saved_iterations(tmp_path) == [4]


def test_a_stopped_one_deletes_nothing_behind_what_it_reads_and_begins_again(tmp_path):
    save(tmp_path, 1, 2)
    is_read, goes_on = threading.Event(), threading.Event()

    def verify_slowly(folder):
        is_read.set()
        assert goes_on.wait(60)

    retention = Retention(tmp_path, RetentionPolicy(1))
    with mock.patch("megatron.checkpoint.retention.verify_files", verify_slowly):
        retention.published(2)
        assert is_read.wait(60)
        retention.stop()  # returns while the checkpoint is still being read
        goes_on.set()
        assert retention.wait(60)
    assert saved_iterations(tmp_path) == [1, 2]
    retention.published(2)
    assert retention.wait(60)
    assert saved_iterations(tmp_path) == [2]


def delete_obsolete(root, policy, whole):
    retire_obsolete(root, policy, whole)
    delete_retired(root)


def die_while_deleting(root, step):
    """Delete in a child process that dies before its step-th access to the disk. False if it lived to the end."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event, args):
            nonlocal left
            if event in DISK_EVENTS and (str(root) in str(args[0]) or event == "os.rmdir"):
                left -= 1
                if left == 0:
                    os._exit(DIED)

        sys.addaudithook(count)
        try:
            delete_obsolete(root, RetentionPolicy(1), 3)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == DIED


def test_death_at_any_step_leaves_whole_checkpoints_and_the_rest_goes_later(tmp_path):
    step, is_dead = 0, True
    while is_dead:
        step += 1
        root = tmp_path / str(step)
        save(root, 1, 2, 3)
        is_dead = die_while_deleting(root, step)
        left = saved_iterations(root)
        assert left[-1] == 3
        for iteration in left:  # what has a name that counts is whole
            verify_files(root / f"iter_{iteration:07d}")
        delete_obsolete(root, RetentionPolicy(1), 3)
        assert {path.name for path in root.iterdir()} == {"iter_0000003", TRACKER}
    assert step > 8, "the audit hook saw too little"


def test_one_folder_that_cannot_be_deleted_keeps_no_other(tmp_path):
    names = [f"iter_000000{n}.deleted-0000000{n}" for n in range(3)]
    for name in names:
        (tmp_path / name).mkdir()
    real = shutil.rmtree

    def fail_once(folder):
        if folder.name == names[1]:
            raise OSError(5, "Input/output error")
        real(folder)

    with mock.patch("shutil.rmtree", fail_once), pytest.raises(OSError, match="Input/output"):
        delete_retired(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [names[1]]
