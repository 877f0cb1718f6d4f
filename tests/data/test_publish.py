import fcntl
import os
import signal
from pathlib import Path

import pytest

from megatron.data.publish import open_locked, publish
from megatron.errors import DataError

NAMES = ("side", "bin", "idx")


@pytest.mark.parametrize("has_older", [False, True])
def test_whoever_sees_the_last_file_sees_one_set(tmp_path, monkeypatch, has_older):
    """Looked at after every single step of publishing."""
    seen = []
    for name in NAMES:
        (tmp_path / f"{name}.tmp").write_text("new")
        if has_older:
            (tmp_path / name).write_text("old")
    (tmp_path / "stale").write_text("old")

    def look(method):
        def wrapper(path, *args, **kwargs):
            result = method(path, *args, **kwargs)
            seen.append({n: (tmp_path / n).read_text() for n in NAMES if (tmp_path / n).exists()})
            return result

        return wrapper

    monkeypatch.setattr(Path, "unlink", look(Path.unlink))
    monkeypatch.setattr(Path, "replace", look(Path.replace))
    files = [(tmp_path / f"{name}.tmp", tmp_path / name) for name in NAMES]
    publish(files, stale=[tmp_path / "stale"])
    assert len(seen) == 7
    assert all(
        len(state) == 3 and len(set(state.values())) == 1 for state in seen if "idx" in state
    )
    assert seen[-1] == dict.fromkeys(NAMES, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_single_file_is_there_after_every_step(tmp_path, monkeypatch):
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new")
    old.write_text("old")
    unlink = Path.unlink

    def look(path, **options):
        unlink(path, **options)
        assert old.exists(), "a process that is killed here has lost the file"

    monkeypatch.setattr(Path, "unlink", look)
    publish([(new, old)])
    assert old.read_text() == "new"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_all_is_published(tmp_path, monkeypatch, number):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    for name in NAMES:
        (tmp_path / f"{name}.tmp").write_text("new")
        (tmp_path / name).write_text("old")
    replace = Path.replace

    def interrupted(path, target):
        os.kill(os.getpid(), number)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    older = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            publish([(tmp_path / f"{name}.tmp", tmp_path / name) for name in NAMES])
    finally:
        signal.signal(number, older)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        NAMES, "new"
    )


def test_a_lock_is_held_until_the_file_is_closed_and_what_was_left_is_emptied(tmp_path):
    (tmp_path / "a").write_text("left by a killed process")
    with open_locked(tmp_path / "a") as file:
        file.write(b"x")
        with pytest.raises(DataError, match="another process"):
            open_locked(tmp_path / "a")
    with open_locked(tmp_path / "a"):
        assert (tmp_path / "a").read_bytes() == b""


def test_a_file_published_between_opening_and_locking_is_left_alone(tmp_path, monkeypatch):
    def flock(file, flags):
        (tmp_path / "a").rename(tmp_path / "final")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "a").write_text("whole")
    with pytest.raises(DataError, match="another process"):
        open_locked(tmp_path / "a")
    assert (tmp_path / "final").read_text() == "whole"
