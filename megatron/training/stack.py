"""Where a thread stands, told from its Python frames: at which line of ours, and in which collective it waits."""

from __future__ import annotations

import linecache
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch.distributed as dist

PACKAGE = Path(__file__).parents[1]  # megatron/
DISTRIBUTED = "/torch/distributed/"
COMPUTING = "/torch/distributed/tensor/"  # of sharded tensors; collectives they call lie elsewhere
LOGGING_WRAPPERS = {"wrapper"}  # around every collective of torch


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
    line = _line(frame)
    return ".wait(" in line or ".synchronize(" in line


def place(frame: FrameType | None) -> str:
    """Name the innermost line of ours, `training/step.py:183 in _reduce`, or of anybody if there is none."""
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
    return name or _line(frame).strip()


def write_stacks(file: TextIO, title: str) -> None:
    """Write the Python stacks of all threads of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    print(title, file=file)
    for ident, frame in sys._current_frames().items():
        print(f"\nthread {names.get(ident, ident)}", file=file)
        file.writelines(traceback.format_stack(frame))
    file.flush()


def _line(frame: FrameType) -> str:
    """Give the text of the line that a frame stands at; none where it has just no number, as between two lines."""
    number: int | None = frame.f_lineno
    return "" if number is None else linecache.getline(frame.f_code.co_filename, number)


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
