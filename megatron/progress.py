"""How far long work has come, for people who watch it: a bar on a terminal, a line now and then in the log of a job."""

from __future__ import annotations

import io
import sys
import time
from typing import Any, NoReturn

from tqdm import tqdm

LOG_SECONDS = 30.0  # between two lines of a log; what takes less says nothing
_LINE = "{desc}: {percentage:.0f}% of {total_fmt}B in {elapsed}, {remaining} left"


def byte_bar(total: int, what: str) -> tqdm[NoReturn]:
    """Give a bar of bytes, to be told of those that are done by `update`. Use as a context manager."""
    settings: dict[str, Any] = {"total": total, "unit": "B", "unit_scale": True, "desc": what}
    return tqdm(**settings) if sys.stderr.isatty() else _LoggedBar(**settings)


class _LoggedBar(tqdm):
    """A bar that nobody watches: a line on stderr from time to time, none of work that is done before."""

    def __init__(self, **settings: Any) -> None:
        self._last_line = time.monotonic()
        # tqdm writes carriage returns to its file as it begins and ends.
        super().__init__(**settings, file=io.StringIO(), bar_format=_LINE)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if now - self._last_line >= LOG_SECONDS and self.n < (self.total or 0):
            self._last_line = now
            print(f"{time.strftime('%H:%M:%S')} {self}", file=sys.stderr, flush=True)
        return True
