"""What a model is asked to write and how that is judged, whatever the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.errors import DataError
from megatron.evaluation.isolation.trial import AnyTrial, Equipment, Verdict
from megatron.evaluation.row_file import read_rows

Run = Callable[[AnyTrial], Verdict]


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
