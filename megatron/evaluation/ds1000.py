"""DS-1000 in its published format: snippets for data science libraries, to complete or to insert."""

from __future__ import annotations

import dataclasses
import importlib.util
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron.errors import ConfigError
from megatron.evaluation.isolation.trial import ContextTrial, Equipment, Verdict
from megatron.evaluation.task import Run, Task, load_tasks, text_of

Form = Literal["completion", "insertion"]
STOP = ("</code>", "# SOLUTION END", "\n```")
MARK = "[insert]"
SUFFIX = "\n</code>\nEND SOLUTION\n"  # of the format to insert in, where a prompt shows no mark
NO_INSERTION = "Matplotlib"  # whose prompts end in a comment, not in a gap
MODULES = ("numpy", "pandas", "scipy", "matplotlib.pyplot")  # loaded once for all trials
MEMORY = 4 << 30


@dataclass(frozen=True, kw_only=True)
class SnippetTask(Task):
    """A snippet to write."""

    context: str
    is_apart: bool = True

    @property
    def equipment(self) -> Equipment:
        folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        present = [name for name in MODULES if importlib.util.find_spec(name.partition(".")[0])]
        return Equipment(
            packages=tuple(sorted(folders)),
            preloaded=tuple(present),
            memory=MEMORY,
            cpu_seconds=60,
            disk=64 << 20,
        )

    def prepare(self, run: Run) -> Task | str:
        """Choose where the tests run by the benchmark's own solution: apart from the snippet if they can."""
        if self.solution is None:
            return self
        details = []
        for is_apart in (True, False):
            task = dataclasses.replace(self, is_apart=is_apart)
            verdict = task.judge(self.solution, run)
            if verdict.is_passed:
                return task
            details.append(f"{verdict.outcome}: {verdict.detail}")
        return f"the benchmark's own solution fails here: {details[-1]}"

    def judge(self, completion: str, run: Run) -> Verdict:
        verdict = run(ContextTrial(self.context, _trimmed(completion), self.is_apart))
        return dataclasses.replace(verdict, is_proven=self.is_apart)


def load_ds1000(path: Path | None, form: Form) -> list[SnippetTask]:
    """Read DS-1000's lines. Raises ConfigError or DataError."""
    if path is None:
        raise ConfigError("no package carries DS-1000; give --tasks-file ds1000.jsonl.gz")
    tasks = load_tasks(path, lambda row: _task(row, form))
    if form == "insertion":
        tasks = [task for task in tasks if task.group != NO_INSERTION]
        if not tasks:
            raise ConfigError(f"{path} has no task to insert in; give --form completion")
    return tasks


def _task(row: dict[str, Any], form: Form) -> SnippetTask:
    metadata = row["metadata"]
    prompt, suffix = text_of(row, "prompt"), None
    before, mark, after = prompt.partition(MARK)
    if form == "insertion":
        prompt, suffix = (before, after) if mark else (prompt, SUFFIX)
    elif mark:
        prompt = before
    library = str(metadata["library"])
    return SnippetTask(
        name=f"DS-1000/{library}/{int(metadata['library_problem_id'])}",
        group=library,
        model_prompt=prompt,
        model_suffix=suffix,
        stop=STOP,
        solution=row.get("reference_code"),
        context=text_of(row, "code_context"),
    )


def _trimmed(completion: str) -> str:
    """Cut a completion at the end of its code; lines keep their indentation, which a context may need."""
    for stop in STOP:
        completion = completion.split(stop)[0]
    return completion.strip("\n")
