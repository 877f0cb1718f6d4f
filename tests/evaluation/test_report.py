"""Reports: what is counted, and what is left out."""

import pytest

from megatron.errors import DataError
from megatron.evaluation.infilling import InfillingTask
from megatron.evaluation.isolation.trial import Verdict
from megatron.evaluation.report import make_report, to_markdown
from megatron.evaluation.sample import Sample
from megatron.evaluation.score import Result

TASKS = [InfillingTask(tests=None, name=f"{group}/{number}", group=group, model_prompt="") for group in "ab" for number in (0, 1)]  # fmt: skip


def result(task: str, outcome: str, *, proven: bool = True) -> Result:
    return Result(Sample(task, 0, ""), Verdict(outcome, "why", 0.1, proven))


def report(outcomes: list[str], **changes: bool) -> dict:
    results = [result(task.name, one, **changes) for task, one in zip(TASKS, outcomes, strict=True)]
    return make_report("ds1000", TASKS, results, None, is_isolated=True)


def test_groups_have_rates_of_their_own() -> None:
    found = report(["passed", "wrong", "passed", "passed"])
    assert found["pass_at"]["1"]["value"] == 0.75
    assert {name: row["pass_at"]["1"]["value"] for name, row in found["groups"].items()} == {
        "a": 0.5,
        "b": 1.0,
    }


def test_tasks_that_cannot_be_judged_here_are_left_out_and_named() -> None:
    found = report(["passed", "not-here", "wrong", "passed"])
    assert found["pass_at"]["1"]["value"] == pytest.approx(2 / 3) and found["num_tasks"] == 3
    assert found["groups"]["a"]["num_tasks"] == 1
    assert "Tasks left out, for they cannot be judged on this machine: 1; a/1: why" in to_markdown(found)  # fmt: skip
    with pytest.raises(DataError, match="no task can be judged on this machine; a/0, for one: why"):
        report(["not-here"] * 4)


def test_a_score_of_a_part_says_so_and_stands_beside_no_published_one() -> None:
    tasks, results = TASKS[:1], [result("a/0", "passed")]
    whole, cut = (make_report("humaneval", tasks, results, None, is_isolated=True, is_cut=is_cut) for is_cut in (False, True))  # fmt: skip
    part = make_report("humaneval", tasks, results, None, is_isolated=True, unfinished={"a/1": 0})
    assert "| pass@1, published | % |" in to_markdown(whole) and "In part" not in to_markdown(whole)
    for one, words in (
        (cut, "Tasks: 1, the first ones. "),
        (part, "**In part: 1 of 2 tasks are left out, for they lack samples. This"),
    ):
        assert words in to_markdown(one) and "published" not in to_markdown(one)


def test_what_passed_by_its_own_word_is_said() -> None:
    found = report(["passed", "wrong", "passed", "passed"], proven=False)
    assert found["num_unproven"] == 3
    assert "could be falsified: 3." in to_markdown(found)
    assert "could be falsified" not in to_markdown(report(["passed"] * 4))
