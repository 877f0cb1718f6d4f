"""Infilling: what stands between two parts of a text. Sets made of HumanEval's solutions and of any folder's files.

As in "Efficient Training of Language Models to Fill in the Middle": of each solution a line, each run of lines, or
random spans are taken away; blank lines are no task. What a model writes is run against the problem's tests, and
compared with what stood there. Of files, lines are taken away and compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron.errors import ConfigError, DataError
from megatron.evaluation.isolation.trial import Equipment, Trial, Verdict
from megatron.evaluation.python_task import human_eval_path
from megatron.evaluation.row_file import read_rows
from megatron.evaluation.task import Run, Task, load_tasks, text_of
from megatron.whole_file import replacing

Kind = Literal["single-line", "multi-line", "random-span"]
KINDS: Mapping[str, str] = {
    "single-line": "SingleLineInfilling", "multi-line": "MultiLineInfilling", "random-span": "RandomSpanInfilling",
}  # fmt: skip
NUM_SPANS = 10  # random ones of each solution
FILE_BYTES = range(200, 20_000)  # of files that tasks are made of
LANGUAGES: Mapping[str, str] = {
    ".c": "c", ".cc": "cpp", ".cpp": "cpp", ".cs": "cs", ".cu": "cuda", ".go": "go", ".h": "c", ".hpp": "cpp",
    ".java": "java", ".js": "js", ".jl": "jl", ".kt": "kt", ".lua": "lua", ".php": "php", ".pl": "pl", ".pm": "pl",
    ".py": "py", ".r": "r", ".R": "r", ".rb": "rb", ".rkt": "rkt", ".rs": "rs", ".scala": "scala", ".sh": "sh",
    ".swift": "swift", ".ts": "ts",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InfillingTask(Task):
    """A gap to fill."""

    tests: str | None  # of the whole program; None: compared only
    setup: str = ""
    entry_point: str = ""

    @property
    def equipment(self) -> Equipment | None:
        return Equipment() if self.tests is not None else None

    def judge(self, completion: str, run: Run) -> Verdict:
        if self.tests is None:
            is_exact = self.is_exact(completion)
            return Verdict("passed" if is_exact else "wrong", "", 0.0)
        program = f"{self.model_prompt}{completion}{self.model_suffix}\n"
        return run(Trial(program, self.setup, self.tests, (self.entry_point,)))

    def is_exact(self, completion: str) -> bool | None:
        return completion.strip() == (self.solution or "").strip()


def load_infilling(path: Path | None) -> list[InfillingTask]:
    """Read a set. Raises ConfigError or DataError."""
    if path is None:
        raise ConfigError("give --tasks-file with a set that `evaluate.py make-infilling` wrote")
    return load_tasks(path, _task)


def _task(row: dict[str, Any]) -> InfillingTask:
    name, test = text_of(row, "task_id"), row.get("test")
    shared: dict[str, Any] = {
        "name": name,
        "group": str(row.get("language", name.partition("/")[0])),
        "model_prompt": text_of(row, "prompt"),
        "model_suffix": text_of(row, "suffix"),
        "solution": text_of(row, "canonical_solution"),
    }
    if not test:
        return InfillingTask(**shared, tests=None)
    entry_point = text_of(row, "entry_point")
    # the tests of some problems use what stands above the function
    setup = shared["model_prompt"] + shared["solution"] + shared["model_suffix"]
    tests = f"{test}\ncheck({entry_point})\n"
    return InfillingTask(**shared, tests=tests, setup=setup, entry_point=entry_point)


def infilling_of_human_eval(kind: Kind, path: Path | None, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set made of HumanEval's solutions. Raises ConfigError or DataError."""
    path = human_eval_path(path)
    for number, row in read_rows(path):
        try:
            problem, solution = text_of(row, "task_id"), text_of(row, "canonical_solution")
            shared = {"entry_point": text_of(row, "entry_point"), "test": text_of(row, "test")}
            prompt = text_of(row, "prompt")
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number} is no problem of HumanEval: {error}") from None
        for label, start, stop in _gaps(kind, solution, f"{seed}/{problem}"):
            yield {
                "task_id": f"{KINDS[kind]}/{problem}/{label}",
                **shared,
                "prompt": prompt + solution[:start],
                "suffix": solution[stop:],
                "canonical_solution": solution[start:stop],
            }


def _gaps(kind: Kind, text: str, seed: str) -> Iterator[tuple[str, int, int]]:
    """Yield (label, start, stop) of what is taken away."""
    if kind == "random-span":
        source = random.Random(seed)
        for number in range(NUM_SPANS):
            start, stop = sorted(source.sample(range(len(text) + 1), 2))
            yield f"S{number}", start, stop
        return
    lines = list(_lines(text))
    for first, (start, end) in enumerate(lines):
        if kind == "single-line":
            yield f"L{first}", start, end
            continue
        for last in range(first, len(lines)):
            yield f"L{first}_L{last}", start, lines[last][1]


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield where lines that are not blank start and end, without the line's end."""
    start = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            yield start, start + len(line.rstrip("\r\n"))
        start += len(line)


def infilling_of_folder(
    folder: Path, languages: set[str] | None, per_language: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield rows made of a folder's files, one line taken away of each; which, is a function of seed and path.

    Raises ConfigError where there is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"--from-folder {folder} is no folder")
    by_language: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        language = LANGUAGES.get(path.suffix)
        if language is None or (languages and language not in languages) or not path.is_file():
            continue
        by_language.setdefault(language, []).append(path)
    num_rows = 0
    for language, paths in sorted(by_language.items()):
        random.Random(f"{seed}/{language}").shuffle(paths)
        rows = (_row_of_file(path, folder, language, seed) for path in paths)
        for _, row in zip(range(per_language), filter(None, rows), strict=False):
            num_rows += 1
            yield row
    if not num_rows:
        wanted = f" of {', '.join(sorted(languages))}" if languages else ""
        raise ConfigError(
            f"--from-folder {folder} holds no files{wanted} of {FILE_BYTES.start} to {FILE_BYTES.stop} bytes of UTF-8"
        )


def _row_of_file(path: Path, folder: Path, language: str, seed: int) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    name = path.relative_to(folder).as_posix()
    # a lone bracket is no task: what is there to know?
    lines = [(start, end) for start, end in _lines(text) if any(map(str.isalnum, text[start:end]))]
    if len(data) not in FILE_BYTES or "\0" in text or len(lines) < 2:
        return None
    start, end = random.Random(f"{seed}/{name}").choice(lines)
    return {
        "task_id": f"{language}/{name}",
        "language": language,
        "prompt": text[:start],
        "suffix": text[end:],
        "canonical_solution": text[start:end],
    }


def write_set(rows: Iterator[dict[str, Any]], path: Path) -> int:
    """Write a set in one step and give the number of its tasks. Raises ConfigError."""
    count = 0
    try:
        with replacing(path) as file:
            for row in rows:
                file.write(f"{json.dumps(row)}\n".encode())
                count += 1
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error.strerror}") from None
    return count
