"""Where a thread stands, told from its Python frames: at which line of ours, and in which collective it waits.

No source is read: the disk it lies on may be what hangs. Between two lines a frame of another thread has none (Python
3.11), and then waits for nothing.
"""

from __future__ import annotations

import dis
import functools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TextIO

import torch.distributed as dist

PACKAGE = Path(__file__).parents[2]  # megatron/
DISTRIBUTED = "/torch/distributed/"
COMPUTING = "/torch/distributed/tensor/"  # of sharded tensors; collectives they call lie elsewhere
LOGGING_WRAPPERS = {"wrapper"}  # around every collective of torch
WAITS = ("wait", "synchronize")  # methods that wait for a device or the work of others
LOADS_METHOD = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")  # the last one since Python 3.12


def main_frame() -> FrameType | None:
    """Give the innermost Python frame of the main thread as it is now."""
    ident = threading.main_thread().ident
    return sys._current_frames().get(ident) if ident is not None else None


def is_waiting(frame: FrameType | None) -> bool:
    """Say whether a thread with this innermost frame waits for other processes or for the device."""
    if frame is None:
        return False
    file = frame.f_code.co_filename
    if DISTRIBUTED in file:
        return COMPUTING not in file
    return _wait(frame.f_code, frame.f_lineno) is not None


@functools.lru_cache(1024)
def _wait(code: CodeType, line: int | None) -> str | None:
    """Name the method of WAITS that a line calls, if it does, by the line's instructions."""
    if line is None:
        return None
    ranges = [range(start, stop) for start, stop, number in code.co_lines() if number == line]
    named = (
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in LOADS_METHOD
        and any(instruction.offset in offsets for offsets in ranges)
    )
    return next((name for name in named if name in WAITS), None)


def place(frame: FrameType | None) -> str:
    """Name the innermost line of ours, `megatron/training/step.py:183 in _reduce`, or of anybody if there is none."""
    if frame is None:
        return "nowhere"
    ours = (f for f in _outwards(frame) if f.f_code.co_filename.startswith(str(PACKAGE)))
    found = next(ours, frame)
    path = Path(found.f_code.co_filename)
    name = path.relative_to(PACKAGE.parent) if path.is_relative_to(PACKAGE) else path
    return f"{name}:{found.f_lineno} in {found.f_code.co_name}"


def collective(frame: FrameType | None) -> str | None:
    """Name what a thread waits in, `all_reduce over tp`; None where it does not wait for others."""
    if frame is None or not is_waiting(frame):
        return None
    name = None
    for caller in _outwards(frame):
        file, function = caller.f_code.co_filename, caller.f_code.co_name
        if DISTRIBUTED not in file:
            break
        if file.endswith("distributed_c10d.py") and function not in LOGGING_WRAPPERS:
            name = f"{function} over {_described(caller.f_locals.get('group'))}"
        elif name is None:
            name = f"{function} ({Path(file).name})"
    method = _wait(frame.f_code, frame.f_lineno)  # None: it has gone on since
    return name or (f".{method}()" if method else None)


def write_stacks(file: TextIO, title: str) -> None:
    """Write the Python stacks of all threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    print(title, file=file)
    for ident, frame in sys._current_frames().items():
        print(f"\nthread {names.get(ident, ident)}", file=file)
        for caller in reversed(list(_outwards(frame))):
            code = caller.f_code
            print(
                f'  File "{code.co_filename}", line {caller.f_lineno}, in {code.co_name}', file=file
            )
    file.flush()


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    caller: FrameType | None = frame
    while caller is not None:
        yield caller
        caller = caller.f_back


def _described(group: Any) -> str:
    """Name a group by its axis of the mesh."""
    if not isinstance(group, dist.ProcessGroup):
        return "the world"
    name = group.group_desc or group.group_name
    return "the world" if name in ("default_pg", "undefined") else name.removeprefix("mesh_")
