"""MultiPL-E in its published format: HumanEval and MBPP in many languages, each problem a program with its tests."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError
from megatron.evaluation.falsified import falsified
from megatron.evaluation.isolation.trial import Equipment, Limits, Verdict
from megatron.evaluation.python_task import PythonTask, free_names
from megatron.evaluation.task import Run, Task, load_tasks, text_of
from megatron.evaluation.toolchain import TOOLCHAINS, Installed, language_of

NUM_FALSIFIED = 2
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class ProgramTask(Task):
    """A function to write in some language, tested by the program that it becomes part of."""

    tests: str
    num_falsified: int = NUM_FALSIFIED  # runs that a right program must fail
    limits: Limits = DEFAULT_LIMITS
    installed: Installed | None = None

    @property
    def equipment(self) -> Equipment:
        return self.installed.equipment if self.installed else Equipment()

    def judge(self, completion: str, run: Run) -> Verdict:
        assert self.installed is not None, "equip comes before"
        program = f"{self.model_prompt}{completion}\n"
        verdict = run(self.installed.trial(program + self.tests, self.limits))
        if not verdict.is_passed:
            return verdict
        left = falsified(self.tests, self.group)
        num_failed, seconds = 0, verdict.seconds
        while left and num_failed < self.num_falsified:
            # the last one first: a program that ends early does not reach it
            place = secrets.randbelow(len(left)) if num_failed else len(left) - 1
            other = run(self.installed.trial(program + left.pop(place), self.limits))
            seconds += other.seconds
            if other.is_passed:
                detail = "it passes falsified tests, too: it ends early, or its checks do nothing"
                return Verdict("forged", detail, seconds)
            if other.outcome in ("wrong", "exited"):
                num_failed += 1
        wanted = min(self.num_falsified, 1)
        detail = "" if num_failed >= wanted else "no test could be falsified"
        return Verdict("passed", detail, seconds, is_proven=num_failed > 0)


def load_multipl_e(paths: Sequence[Path]) -> list[Task]:
    """Read MultiPL-E's files, JSON lines or Parquet, of one language or more. Raises ConfigError or DataError."""
    if not paths:
        raise ConfigError(
            "no package carries MultiPL-E; give --tasks-file with files of its data set, such as "
            "humaneval-js/test-00000-of-00001.parquet"
        )
    return [task for path in paths for task in load_tasks(path, _task)]


def _task(row: dict[str, Any]) -> Task:
    language = language_of(text_of(row, "language"))
    prompt, tests = text_of(row, "prompt").strip(), text_of(row, "tests")
    name = text_of(row, "name")
    shared: dict[str, Any] = {
        "name": f"{language}/{name}",
        "group": language,
        "model_prompt": prompt,
        "stop": tuple(row["stop_tokens"]),
        "solution": row.get("canonical_solution"),
        "tests": tests,
    }
    if language == "py":
        return PythonTask(**shared, prompt=prompt, setup="", entry_points=free_names(tests))
    return ProgramTask(**shared)


def equip(tasks: Iterable[Task], limits: Limits, num_falsified: int) -> list[Task]:
    """Give the tasks with the tools that run them. Raises ConfigError for languages that are not installed."""
    tasks = list(tasks)
    wanted = sorted({task.group for task in tasks if isinstance(task, ProgramTask)})
    found = {language: Installed.find(language) for language in wanted}
    missing = [language for language, installed in found.items() if installed is None]
    if missing:
        tools = "; ".join(f"{name} needs {_needs(name)}" for name in missing)
        raise ConfigError(
            f"this machine lacks what runs {', '.join(missing)}: {tools}; or choose others with --only"
        )
    return [
        dataclasses.replace(
            task, installed=found[task.group], limits=limits, num_falsified=num_falsified
        )
        if isinstance(task, ProgramTask)
        else task
        for task in tasks
    ]


def _needs(language: str) -> str:
    toolchain = TOOLCHAINS[language]
    tools = " and ".join(" or ".join(programs) for programs in toolchain.tools.values())
    return f"{tools} (Debian: {toolchain.debian})" if toolchain.debian else tools
