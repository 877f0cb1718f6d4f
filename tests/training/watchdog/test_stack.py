"""Where a thread stands is told without its source, which may lie on the disk that hangs."""

import io
import sys
import threading
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from megatron.parallel.launch import Launch
from megatron.training.marks import Marks
from megatron.training.watchdog import stack
from megatron.training.watchdog.watch import Watch
from tests.training.runs import flags_of, parse

SOURCE = """
def waits(event, others):
    others.append(
        event.event.wait(
            60
        )
    )
def computes(event, others):
    wait, synchronize = "wait", others
    while not event.event.is_set():
        pass
"""
SOURCELESS = compile(SOURCE, "no/such/file.py", "exec")


@pytest.mark.parametrize(("name", "is_waiting"), [("waits", True), ("computes", False)])
def test_a_wait_is_told_from_computing_without_a_source_file(name, is_waiting):
    class Holder:
        event = threading.Event()

    held = {}
    exec(SOURCELESS, held)
    thread = threading.Thread(target=held[name], args=(Holder, []))
    thread.start()
    try:
        while True:  # until it stands in the function: what is above it is threading's own
            frame = sys._current_frames().get(thread.ident)
            while frame is not None and frame.f_code.co_name != name:
                frame = frame.f_back
            if frame is not None and frame.f_lineno > 2:
                break
        assert stack.is_waiting(frame) is is_waiting
        assert stack.collective(frame) == (".wait()" if is_waiting else None)
        assert stack.place(frame) == f"no/such/file.py:{frame.f_lineno} in {name}"
        file = io.StringIO()
        stack.write_stacks(file, "title")
        assert f'File "no/such/file.py", line {frame.f_lineno}, in {name}\n' in file.getvalue()
    finally:
        Holder.event.set()
        thread.join()


def test_a_frame_without_a_line_does_not_wait():
    # What another thread may see of a frame between two lines (Python 3.11). The watch would end with an error here.
    frame = SimpleNamespace(f_code=SOURCELESS, f_lineno=None)
    assert not stack.is_waiting(frame)
    assert stack.collective(frame) is None


def test_a_thread_that_goes_on_while_it_is_looked_at_waits_in_nothing():
    waits = next(c for c in SOURCELESS.co_consts if getattr(c, "co_name", None) == "waits")
    lines = iter([4, 2])

    class Frame:
        f_code, f_back, f_locals = waits, None, {}
        f_lineno = property(lambda self: next(lines))

    assert stack.collective(Frame()) is None


def test_a_process_whose_watch_died_still_ends_when_a_peer_is_lost(corpus, tmp_path):
    config = parse(flags_of(corpus, tmp_path, ""))
    watch = Watch(config, Launch(1, 1, 2, 2, True), Marks())
    watch._exchange = mock.Mock(alarm=None, reports=[])
    with (
        mock.patch.object(Watch, "_sample", side_effect=TypeError("a bug")),
        mock.patch("threading.excepthook") as hook,
        mock.patch("megatron.training.watchdog.watch.faulthandler") as faulthandler,
        mock.patch("megatron.training.watchdog.watch.signal"),
        mock.patch("megatron.training.watchdog.watch.leave_at_once") as leave,
    ):
        started = time.monotonic()
        with pytest.raises(RuntimeError), watch:
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert hook.called and faulthandler.dump_traceback_later.called
    assert time.monotonic() - started < 30 and not leave.called


@pytest.mark.parametrize("method", [torch.cuda.Event.synchronize, torch.cuda.Stream.synchronize])
def test_who_waits_for_a_gpu_waits(method):
    """In both a line of torch's calls the method of the class above, which Python 3.12 has an instruction for."""
    code = method.__code__
    lines = {number for _, _, number in code.co_lines() if number is not None}
    frames = [SimpleNamespace(f_code=code, f_lineno=number) for number in lines]
    assert any(map(stack.is_waiting, frames))
