"""Which tasks of a benchmark can be scored while others lack samples, and what has to be said of such a score.

A task counts with all its samples or not at all: of one that is being drawn, those that ended first are there, the short
ones, which are right more or less often than the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.errors import DataError
from megatron.evaluation.sample import Sample
from megatron.evaluation.task import Task


@dataclass(frozen=True)
class Part:
    """Tasks that have all their samples, and how many the others have."""

    tasks: Sequence[Task]
    samples: Sequence[Sample]  # as many of each task
    num_samples: int
    unfinished: Mapping[str, int]

    @property
    def what_is_left_out(self) -> str:
        """Say it in a sentence without its full stop; "" if nothing is."""
        if not self.unfinished:
            return ""
        name, count = max(self.unfinished.items(), key=lambda item: (item[1], item[0]))
        return (
            f"{len(self.unfinished)} of {len(self.tasks) + len(self.unfinished)} tasks are left out, for they lack samples; "
            f"{name}, for one, has {count} of {self.num_samples}"
        )


def finished_part(tasks: Sequence[Task], samples: Sequence[Sample], wanted: int | None) -> Part:
    """Choose the tasks that have all samples; of one with more, those with the lowest numbers count.

    wanted: samples of each task, as they were to be drawn; None: as many as most tasks have. Raises DataError where no
    task is finished.
    """
    of_tasks: dict[str, list[Sample]] = {task.name: [] for task in tasks}
    for sample in samples:
        of_tasks[sample.task].append(sample)
    counts = {name: len(theirs) for name, theirs in of_tasks.items()}
    if wanted is None:
        how_often = Counter(count for count in counts.values() if count)
        wanted = max(how_often, key=lambda count: (how_often[count], count), default=0)
    finished = [task for task in tasks if counts[task.name] >= max(wanted, 1)]
    if not finished:
        raise DataError(
            f"no task has its {wanted} samples, as they were to be drawn; go on with `evaluate.py sample` until one has"
        )
    kept: list[Sample] = []
    for task in finished:
        kept += sorted(of_tasks[task.name], key=lambda sample: sample.number)[:wanted]
    unfinished = {name: count for name, count in counts.items() if count < wanted}
    return Part(finished, kept, wanted, unfinished)
