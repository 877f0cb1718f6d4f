"""DS-1000's snippets: judged apart where values can cross, beside their tests where not, and never by their own word unnoticed."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron.errors import ConfigError
from megatron.evaluation.benchmark import LIMITS
from megatron.evaluation.ds1000 import SnippetTask, load_ds1000
from megatron.evaluation.isolation import array_wire, wire
from megatron.evaluation.isolation.sandbox import Sandbox

SET = Path(__file__).parent / "sets" / "ds1000.jsonl"
TASKS = {task.name.removeprefix("DS-1000/"): task for task in load_ds1000(SET, "completion")}
MAXIMUM, DISTANCE, TABLE, FIGURE = TASKS.values()
STACK_WALK = """
import sys
frame = sys._getframe()
while frame:
    for values in (frame.f_globals, frame.f_locals):
        for name, value in list(values.items()):
            if name in ("exec_test", "test_string"):
                values[name] = lambda *rest: 1
    frame = frame.f_back
result = None
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox(LIMITS["ds1000"], MAXIMUM.equipment) as sandbox:
            yield sandbox
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TASKS)
def test_solution_passes_and_nothing_else_does(name: str, sandbox: Sandbox) -> None:
    task = TASKS[name]
    library = task.group.lower()
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    prepared = task.prepare(sandbox.run)
    assert isinstance(prepared, SnippetTask), prepared
    assert prepared.is_apart == (task is not FIGURE)
    verdict = prepared.judge(task.solution or "", sandbox.run)
    assert verdict.is_passed and verdict.is_proven == prepared.is_apart
    assert not prepared.judge(
        "    pass" if task is DISTANCE else "result = x = 0", sandbox.run
    ).is_passed


def test_tests_apart_are_out_of_reach(sandbox: Sandbox) -> None:
    assert MAXIMUM.judge(STACK_WALK, sandbox.run).outcome == "wrong"
    together = dataclasses.replace(MAXIMUM, is_apart=False)
    verdict = together.judge(STACK_WALK, sandbox.run)
    assert verdict.is_passed and not verdict.is_proven  # which is why the report counts these


@pytest.mark.parametrize(
    ("snippet", "outcome"),
    [
        ("result = [max(column) for column in a.T]", "wrong"),  # right, but the task forbids a loop
        ("result = a.max(axis=0)\n</code>\nEND SOLUTION", "passed"),
        ("class Any:\n    __eq__ = lambda *rest: True\nresult = Any()", "no-plain-value"),
        ("import os\nos._exit(0)", "exited"),
        ("raise SystemExit(0)", "error"),
        ("result = a.max(axis=", "error"),
        ("raise AssertionError", "error"),
    ],
)
def test_outcomes(snippet: str, outcome: str, sandbox: Sandbox) -> None:
    assert MAXIMUM.judge(snippet, sandbox.run).outcome == outcome


def test_a_task_whose_own_solution_fails_here_is_left_out(sandbox: Sandbox) -> None:
    broken = dataclasses.replace(MAXIMUM, context="import no_such_library\n" + MAXIMUM.context)
    assert "no_such_library" in str(broken.prepare(sandbox.run))


def test_insertion_has_what_follows_and_no_figures() -> None:
    tasks = load_ds1000(SET, "insertion")
    assert [task.group for task in tasks] == ["Numpy", "Numpy", "Pandas"]
    assert all(task.model_suffix == "\n</code>\nEND SOLUTION\n" for task in tasks)


def test_a_mark_in_the_prompt_is_where_is_inserted(tmp_path: Path) -> None:
    row = json.loads(SET.read_text().splitlines()[0]) | {"prompt": "before\n[insert]\nafter"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (task,) = load_ds1000(tmp_path / "rows.jsonl", "insertion")
    assert (task.model_prompt, task.model_suffix) == ("before\n", "\nafter")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3), np.array([]), np.array(3.5), np.array([np.nan, -0.0]),
        np.array(["é", "ab"]), np.array(["2020-01-01"], "M8[D]"), np.array([1, "a", None, [2]], dtype=object),
        np.zeros((0, 3), bool), np.float32(2.5), np.int64(7),
    ],
)  # fmt: skip
def test_arrays_cross_with_type_and_shape(array: np.ndarray) -> None:
    given = array_wire.decode(json.loads(json.dumps(array_wire.encode(array))))
    assert type(given) is type(array) and given.dtype == array.dtype and given.shape == array.shape
    assert (
        given.tobytes() == array.tobytes() if array.dtype != object else list(given) == list(array)
    )


def test_tables_cross() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(
        {"a": [1, 2], "b": ["x", None], "c": pd.Categorical(["u", "v"], ordered=True), "d": [1.5, np.nan]},
        index=pd.MultiIndex.from_tuples([(1, "p"), (2, "q")], names=["n", None]),
    )  # fmt: skip
    table["e"] = pd.to_datetime(["2020-01-01", None])
    table["f"] = pd.array([1, None], dtype="Int64")
    values = [
        table,
        table["a"],
        table.index,
        pd.RangeIndex(0, 6, 2),
        pd.Timestamp("2020-01-01", tz="UTC"),
        pd.NaT,
    ]
    for value in values:
        given = array_wire.decode(json.loads(json.dumps(array_wire.encode(value))))
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(given, value)
        elif isinstance(value, pd.Series):
            pd.testing.assert_series_equal(given, value)
        else:
            assert type(given) is type(value) and str(given) == str(value)


@pytest.mark.parametrize(
    "data",
    [{"n": [[2], "<i8", "AAAA"]}, {"n": [[-1], "<i8", ""]}, {"n": [[1], "O", "AAAAAAAAAAA="]}, {"F": [1, 2, 3]},
     {"T": ["Timestamp", "no", None]}, {"n": None}, {"P": ["evil", False, [1], 1, 2, 3]}, {"q": 1}],
)  # fmt: skip
def test_damaged_arrays_are_refused(data: dict) -> None:
    with pytest.raises((wire.WireError, ModuleNotFoundError)):
        array_wire.decode(data)
