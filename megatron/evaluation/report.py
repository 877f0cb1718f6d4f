"""A score as JSON and Markdown, beside the paper's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron.errors import DataError
from megatron.evaluation.pass_at_k import estimate
from megatron.evaluation.sample import Settings
from megatron.evaluation.score import Result
from megatron.evaluation.task import Task

KS = (1, 10, 100)
# StarCoder §6.1.1, pass@1 in %.
PAPER: Mapping[str, Mapping[str, float]] = {
    "humaneval": {
        "LLaMA-7B": 10.5, "LLaMA-65B": 23.7, "CodeGen-16B-Multi": 18.3, "CodeGen-16B-Mono": 29.3,
        "code-cushman-001": 33.5, "StarCoderBase": 30.4, "StarCoder": 33.6, "StarCoder, prompted": 40.8,
    },
    "mbpp": {
        "LLaMA-7B": 17.7, "LLaMA-65B": 37.7, "CodeGen-16B-Multi": 20.9, "CodeGen-16B-Mono": 35.3,
        "code-cushman-001": 45.9, "StarCoderBase": 49.0, "StarCoder": 52.7, "StarCoder, prompted": 49.5,
    },
}  # fmt: skip


def make_report(
    benchmark: str,
    tasks: Sequence[Task],
    results: Sequence[Result],
    settings: Settings | None,
    *,
    is_isolated: bool,
) -> dict[str, Any]:
    """Give what was measured. Raises DataError where tasks have no samples or not equally many."""
    counts = Counter(result.sample.task for result in results)
    correct = Counter(result.sample.task for result in results if result.verdict.is_passed)
    missing = [task.name for task in tasks if task.name not in counts]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(tasks)} tasks have no samples, {missing[0]} for one; write them, or choose "
            f"tasks with --limit"
        )
    if len(set(counts.values())) > 1:
        (least, few), (most, many) = (
            min((n, t) for t, n in counts.items()),
            max((n, t) for t, n in counts.items()),
        )
        raise DataError(
            f"{few} has {least} samples and {many} {most}; go on with the same command until all are written"
        )
    pairs = [(counts[task.name], correct[task.name]) for task in tasks]
    num_samples = pairs[0][0]
    outcomes = Counter(result.verdict.outcome for result in results)
    return {
        "benchmark": benchmark,
        "num_tasks": len(tasks),
        "num_samples": num_samples,
        "is_isolated": is_isolated,
        "settings": asdict(settings) if settings else None,
        "pass_at": {str(k): asdict(estimate(pairs, k)) for k in KS if k <= num_samples},
        "outcomes": dict(sorted(outcomes.items())),
        "num_timeouts": sum(result.verdict.is_timeout for result in results),
        "tasks": {task.name: correct[task.name] for task in tasks},
        "paper_pass_at_1": PAPER.get(benchmark, {}),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """Give a report for people."""
    lines = [f"# {report['benchmark']}", ""]
    if not report["is_isolated"]:
        lines += [
            "**Not isolated: generated code ran with the user's own rights and could forge its files.**",
            "",
        ]
    lines += [f"{report['num_tasks']} tasks, {report['num_samples']} samples each."]
    settings = report["settings"]
    words = [f"{name} {value!r}" for name, value in (settings or {}).items() if name != "benchmark"]
    lines += [", ".join(words) + "." if words else "How they were drawn is not recorded.", ""]
    lines += ["| | % | 95 % interval over tasks |", "|---|---|---|"]
    for k, found in report["pass_at"].items():
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        lines.append(f"| pass@{k} | {value:.1f} | {low:.1f} to {high:.1f} |")
    lines += ["", "| outcome | samples |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in report["outcomes"].items()]
    if report["num_timeouts"]:
        lines += [
            "",
            f"{report['num_timeouts']} samples ran out of time, which a faster machine may change.",
        ]
    lines += ["", "| pass@1, from the StarCoder paper | % |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in report["paper_pass_at_1"].items()]
    own = 100 * report["pass_at"]["1"]["value"]
    lines += [f"| **this run** | **{own:.1f}** |", ""]
    return "\n".join(lines)
