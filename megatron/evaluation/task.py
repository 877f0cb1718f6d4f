"""What a model is asked to write and how that is judged, whatever the benchmark; and the files that tasks come in."""

from __future__ import annotations

import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.errors import DataError
from megatron.evaluation.trial import AnyTrial, Equipment, Verdict

Run = Callable[[AnyTrial], Verdict]
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One problem. A kind of task says how it is judged."""

    name: str
    group: str = ""  # the report's row: a language, a library
    model_prompt: str  # what the model reads
    model_suffix: str | None = None  # what follows, where the model is to fill in
    stop: tuple[str, ...] = ()  # texts that end a completion
    solution: str | None = None  # a completion that is right, where the benchmark gives one

    @property
    def equipment(self) -> Equipment | None:
        """What a sandbox must have for it; None where nothing is run."""
        return Equipment()

    def prepare(self, run: Run) -> Task | str:
        """Give the task as it can be judged on this machine, or why it cannot. Called once, before any completion."""
        return self

    @abstractmethod
    def judge(self, completion: str, run: Run) -> Verdict:
        """Say how a completion does."""

    def is_exact(self, completion: str) -> bool | None:
        """Say whether a completion is the expected text, where that is measured."""
        return None


AnyTask = TypeVar("AnyTask", bound=Task)


def load_tasks(path: Path, make: Callable[[dict[str, Any]], AnyTask]) -> list[AnyTask]:
    """Read a file of tasks. Raises DataError, which names the line."""
    tasks: list[AnyTask] = []
    for number, row in read_rows(path):
        try:
            tasks.append(make(row))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path}, line {number} is no task of this benchmark: {reason}"
            ) from None
    if not tasks:
        raise DataError(f"{path} holds no task")
    check_names(tasks, path)
    return tasks


def check_names(tasks: Sequence[Task], path: Path) -> None:
    """Raise DataError where two tasks have one name."""
    seen = set[str]()
    for task in tasks:
        if task.name in seen:
            raise DataError(f"{path} has two tasks {task.name}; results are told apart by name")
        seen.add(task.name)


def text_of(row: dict[str, Any], key: str) -> str:
    """Give a text of a row. Raises KeyError or TypeError."""
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r:.40}, where a text is wanted")
    return value


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of JSON lines, gzip or plain, or of Parquet. Raises DataError, which names the line."""
    try:
        data = path.read_bytes()
        if data[:4] == PARQUET_MAGIC:
            yield from enumerate(_read_parquet(path), start=1)
            return
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} holds no object")
        yield number, row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    return rows
