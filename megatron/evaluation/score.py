"""Judge samples with several workers. Equal completions of a task are judged once."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from megatron.errors import DataError
from megatron.evaluation.journal import Journal
from megatron.evaluation.sample import Sample
from megatron.evaluation.sandbox import Sandbox
from megatron.evaluation.task import Run, Task
from megatron.evaluation.trial import AnyTrial, Equipment, Limits, Verdict


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
