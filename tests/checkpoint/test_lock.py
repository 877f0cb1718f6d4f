"""Two runs cannot write to one folder, and a dead one holds nothing."""

import errno
import os
import socket
import subprocess
import sys
from unittest import mock

import pytest

from megatron.checkpoint.lock import LOCAL_SECONDS, LOCK_FILE, REMOTE_SECONDS, FolderLock
from megatron.errors import CheckpointError

HOLD = """
import os, sys
from pathlib import Path
from megatron.checkpoint.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    os.close(1)
    os.read(0, 1)  # outlives its parent, as a loader process may
    os._exit(0)
print(os.getpid(), flush=True)
os.read(0, 1)
"""


@pytest.fixture
def slept():
    """What is slept while nobody waits for it."""
    with mock.patch("megatron.checkpoint.lock.time.sleep") as sleep:
        yield sleep


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path, with a child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(process.stdout.readline()) == process.pid
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_who_the_first_is(holder, slept, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is being written by process .*give another --save"
    ) as error:
        FolderLock(tmp_path)
    for words in (str(holder.pid), socket.gethostname(), "started 2"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def seconds(slept) -> float:
    return sum(call.args[0] for call in slept.call_args_list)


def test_the_end_of_another_process_is_waited_for_and_longer_of_one_on_a_lost_host(
    holder, slept, tmp_path
):
    with pytest.raises(CheckpointError, match="is being written by"):
        FolderLock(tmp_path)
    assert seconds(slept) == LOCAL_SECONDS
    slept.reset_mock()
    with (
        mock.patch("socket.gethostname", return_value="elsewhere"),
        pytest.raises(CheckpointError, match="is being written by"),
    ):
        FolderLock(tmp_path)
    assert seconds(slept) == REMOTE_SECONDS > 90

    def end(_):
        holder.kill()
        holder.wait()

    slept.reset_mock()
    slept.side_effect = end
    FolderLock(tmp_path).release()
    assert slept.call_count == 1


def test_a_killed_process_leaves_no_lock_though_its_children_live(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_FILE).read_text() != ""
    lock = FolderLock(tmp_path)
    assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    lock.release()
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_file_system_without_locks_is_a_warning(tmp_path, caplog):
    with (
        mock.patch("fcntl.lockf", side_effect=OSError(errno.ENOLCK, "No locks available")),
        caplog.at_level("WARNING", "megatron"),
    ):
        FolderLock(tmp_path).release()
    assert "cannot be locked (No locks available)" in caplog.text
