"""What is scored of a file whose sampling has not ended."""

import pytest

from megatron.errors import DataError
from megatron.evaluation.infilling import InfillingTask
from megatron.evaluation.sample import Sample
from megatron.evaluation.score import Part, finished_part

TASKS = [InfillingTask(tests=None, name=name, group="", model_prompt="") for name in "abcd"]


def part_of(counts: list[int], wanted: int | None = None) -> Part:
    """Choose among tasks with so many samples each, the last one first in the file."""
    samples = [
        Sample(task.name, number, "")
        for task, count in zip(TASKS, counts, strict=True)
        for number in reversed(range(count))
    ]
    return finished_part(TASKS, samples, wanted)


@pytest.mark.parametrize(
    "counts, wanted, finished, unfinished",
    [
        ([3, 3, 1, 0], 3, "ab", {"c": 1, "d": 0}),
        ([3, 3, 1, 0], None, "ab", {"c": 1, "d": 0}),
        ([2, 0, 0, 0], None, "a", {"b": 0, "c": 0, "d": 0}),
        ([3, 3, 2, 2], None, "ab", {"c": 2, "d": 2}),  # as many of each kind: the more samples
        ([1, 1, 1, 4], None, "abcd", {}),
        ([1, 1, 1, 4], 4, "d", {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_a_task_counts_with_all_its_samples_or_not_at_all(counts, wanted, finished, unfinished):
    part = part_of(counts, wanted)
    assert "".join(task.name for task in part.tasks) == finished
    assert dict(part.unfinished) == unfinished
    expected = [(name, number) for name in finished for number in range(part.num_samples)]
    assert [(sample.task, sample.number) for sample in part.samples] == expected


def test_what_is_left_out_is_said_with_the_task_that_has_most() -> None:
    words = "2 of 4 tasks are left out, for they lack samples; c, for one, has 1 of 3"
    assert part_of([3, 3, 1, 0]).what_is_left_out == words
    assert part_of([1, 1, 1, 1]).what_is_left_out == ""


def test_a_file_without_any_finished_task_is_no_part() -> None:
    with pytest.raises(DataError, match="no task has its 5 samples"):
        part_of([4, 4, 1, 0], 5)
