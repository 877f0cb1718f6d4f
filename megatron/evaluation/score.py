"""Judge samples with several workers. Equal completions of a task are judged once."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from megatron.errors import DataError
from megatron.evaluation.sample import Sample
from megatron.evaluation.sandbox import Limits, Sandbox, Verdict
from megatron.evaluation.task import Task


@dataclass(frozen=True)
class Result:
    """A sample and how it did."""

    sample: Sample
    verdict: Verdict


def score(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    limits: Limits,
    *,
    num_workers: int,
    is_isolated: bool = True,
) -> Iterator[Result]:
    """Yield results as they come. Raises ConfigError where there is no isolation, DataError for an unknown task."""
    by_name = {task.name: task for task in tasks}
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        if sample.task not in by_name:
            raise DataError(
                f"there are samples of {sample.task}, which is no task of the benchmark"
            )
        groups.setdefault((sample.task, sample.completion), []).append(sample)
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        for _ in range(min(num_workers, len(groups))):
            idle.put(stack.enter_context(Sandbox(limits, is_isolated=is_isolated)))

        def judge(task: str, completion: str) -> Verdict:
            sandbox = idle.get()
            try:
                verdict = sandbox.run(by_name[task].trial(completion))
                # A clock's end may be a busy machine's: once more.
                if verdict.outcome == "timeout-wall":
                    verdict = sandbox.run(by_name[task].trial(completion))
                return verdict
            finally:
                idle.put(sandbox)

        executor = stack.enter_context(ThreadPoolExecutor(num_workers))
        stack.callback(executor.shutdown, cancel_futures=True)
        futures = {executor.submit(judge, *key): group for key, group in groups.items()}
        for future in as_completed(futures):
            for sample in futures[future]:
                yield Result(sample, future.result())
