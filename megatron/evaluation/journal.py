"""Verdicts as they come, in a file beside the results to be, so that a score that was stopped goes on where it was.

A verdict counts for the same text of the same task under the same settings; a file of other settings is begun anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.evaluation.isolation.trial import Verdict
from megatron.evaluation.row_file import RowWriter, read_rows


class Journal:
    """Use as a context manager; what ends without an exception needs it no more, and takes it away."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open, and read what is there already. Raises ConfigError where it cannot be written."""
        self._path = path
        head = json.dumps(settings, sort_keys=True)
        try:
            self._rows = RowWriter(path)
            self._known = _read(path, head)
            if not self._known:
                self._rows.clear()
                self._rows.add({"settings": head})
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

    def find(self, task: str, completion: str) -> Verdict | None:
        """Give the verdict of a text, if there was one."""
        return self._known.get(_key(task, completion))

    def add(self, task: str, completion: str, verdict: Verdict) -> None:
        """Note a verdict. Raises ConfigError."""
        try:
            self._rows.add({"key": _key(task, completion), **asdict(verdict)})
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rows.close()
        if kind is None:
            self._path.unlink(missing_ok=True)


def _key(task: str, completion: str) -> str:
    return hashlib.sha256(f"{task}\0{completion}".encode(errors="surrogatepass")).hexdigest()


def _read(path: Path, head: str) -> dict[str, Verdict]:
    """Give what a file of these settings holds; nothing for another one, and for what nobody here wrote."""
    known = {}
    try:
        rows = (row for _, row in read_rows(path))
        if next(rows, {}).get("settings") != head:
            return {}
        for row in rows:
            key = str(row.pop("key"))
            known[key] = Verdict(**row)
    except (DataError, KeyError, TypeError):
        return {}
    return known
