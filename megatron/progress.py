"""How far long work has come, for people who watch it: a bar on a terminal, a line now and then in the log of a job."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOG_SECONDS = 30.0  # between two lines of a log; what takes less says nothing
_LINE = "{desc}: {percentage:.0f}% of {total_fmt}{unit} in {elapsed}, {remaining} left"


def progress_bar(
    total: int | None, what: str, unit: str = "B", *, is_silent: bool = False
) -> tqdm[NoReturn]:
    """Give a bar, to be told of what is done by `update`. Use as a context manager.

    total: None where it is set later. unit: "B", or a word for one such as "sample". is_silent: on processes beside the
    one that tells.
    """
    unit = unit if unit == "B" else f" {unit}s"
    settings: dict[str, Any] = {"total": total, "unit": unit, "desc": what, "disable": is_silent}
    settings["unit_scale"] = unit in ("B", " tokens")  # thousands and more of them
    return tqdm(**settings) if sys.stderr.isatty() else _LoggedBar(**settings)


def counted(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield items, and count those that are done. total: where they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(total, what, unit) as bar:
        for item in items:
            yield item
            bar.update()


class _LoggedBar(tqdm):
    """A bar that nobody watches: a line on stderr from time to time, none of work that is done before."""

    def __init__(self, **settings: Any) -> None:
        self._last_line = time.monotonic()
        # tqdm writes carriage returns to its file as it begins and ends.
        # At each update the clock is read: work may go fast at first, as what is known already, and slowly then.
        super().__init__(**settings, file=io.StringIO(), bar_format=_LINE, miniters=1)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if now - self._last_line >= LOG_SECONDS and self.n < (self.total or 0):
            self._last_line = now
            print(f"{time.strftime('%H:%M:%S')} {self}", file=sys.stderr, flush=True)
        return True
