"""Judge samples with several workers, each completion of a task once; and say which tasks can be scored.

A task counts with all its samples or not at all: of one that is being drawn, those that ended first are there, the short
ones, which are right more or less often than the others.
"""

from __future__ import annotations

import contextlib
import queue
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from megatron.errors import DataError
from megatron.evaluation.isolation.sandbox import Sandbox
from megatron.evaluation.isolation.trial import AnyTrial, Equipment, Limits, Verdict
from megatron.evaluation.journal import Journal
from megatron.evaluation.sample import Sample
from megatron.evaluation.task import Run, Task


@dataclass(frozen=True)
class Result:
    """A sample and how it did."""

    sample: Sample
    verdict: Verdict
    is_exact: bool | None = None  # whether it is the expected text, where that is measured


def score(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    limits: Limits,
    *,
    num_workers: int,
    is_isolated: bool = True,
    journal: Journal | None = None,
) -> Iterator[Result]:
    """Yield results as they come, those of the journal first.

    Raises ConfigError where there is no isolation, DataError for an unknown task.
    """
    by_name = {task.name: task for task in tasks}
    groups: dict[tuple[str, str], list[Sample]] = {}
    check_known(tasks, samples)
    for sample in samples:
        groups.setdefault((sample.task, sample.completion), []).append(sample)
    rest = []
    for name, completion in groups:
        verdict = journal.find(name, completion) if journal else None
        if verdict is None:
            rest.append((name, completion))
        else:
            yield from _results(by_name[name], groups[name, completion], verdict)
    chosen = [by_name[name] for name in dict.fromkeys(name for name, _ in rest)]
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(_workers(chosen, limits, min(num_workers, len(rest)), is_isolated))  # fmt: skip
        executor = stack.enter_context(ThreadPoolExecutor(num_workers))
        stack.callback(executor.shutdown, cancel_futures=True)
        ready = dict(
            zip(
                [task.name for task in chosen],
                executor.map(lambda task: task.prepare(run), chosen),
                strict=True,
            )
        )

        def judge(name: str, completion: str) -> Verdict:
            task = ready[name]
            if isinstance(task, str):
                return Verdict("not-here", task, 0.0)
            return task.judge(completion, run)

        futures = {executor.submit(judge, *key): key for key in rest}
        for future in as_completed(futures):
            key, verdict = futures[future], future.result()
            if journal and verdict.outcome != "not-here":
                journal.add(*key, verdict)
            yield from _results(by_name[key[0]], groups[key], verdict)


def _results(task: Task, samples: Sequence[Sample], verdict: Verdict) -> Iterator[Result]:
    """Yield the results of samples that have the same text."""
    is_exact = task.is_exact(samples[0].completion)
    for sample in samples:
        yield Result(sample, verdict, is_exact)


def check_known(tasks: Sequence[Task], samples: Sequence[Sample]) -> None:
    """Raise DataError where there are samples of no task."""
    names = {task.name for task in tasks}
    unknown = next((sample.task for sample in samples if sample.task not in names), None)
    if unknown is not None:
        raise DataError(f"there are samples of {unknown}, which is no task of the benchmark")


@contextlib.contextmanager
def _workers(tasks: Sequence[Task], limits: Limits, count: int, is_isolated: bool) -> Iterator[Run]:
    """Give what runs a trial in the next sandbox that is idle. Raises ConfigError where there is no isolation."""
    needed = {task.equipment for task in tasks} - {None}
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        if needed:
            equipment = Equipment()
            for one in needed:
                equipment |= one or Equipment()
            for _ in range(count):
                idle.put(stack.enter_context(Sandbox(limits, equipment, is_isolated=is_isolated)))

        def run(trial: AnyTrial) -> Verdict:
            sandbox = idle.get()
            try:
                verdict = sandbox.run(trial)
                # A clock's end may be a busy machine's: once more.
                if verdict.outcome == "timeout-wall":
                    verdict = sandbox.run(trial)
                return verdict
            finally:
                idle.put(sandbox)

        yield run


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
