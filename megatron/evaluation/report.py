"""A score as JSON and Markdown, beside published ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron.errors import DataError
from megatron.evaluation.paper import PAPER
from megatron.evaluation.pass_at_k import estimate
from megatron.evaluation.sample import Sample, Settings
from megatron.evaluation.score import Result
from megatron.evaluation.task import Task

KS = (1, 10, 100)


def make_report(
    benchmark: str,
    tasks: Sequence[Task],
    results: Sequence[Result],
    settings: Settings | None,
    *,
    is_isolated: bool,
    are_solutions: bool = False,
    unfinished: Mapping[str, int] | None = None,
    is_cut: bool = False,
) -> dict[str, Any]:
    """Give what was measured. Raises DataError where tasks have no samples or not equally many.

    unfinished: tasks of the benchmark that are not among tasks, and how many samples they have. is_cut: tasks are its
    first ones. What is published is of all tasks, and not shown beside such scores.
    """
    counts = check_counts(tasks, [result.sample for result in results])
    correct = Counter(result.sample.task for result in results if result.verdict.is_passed)
    not_here = {r.sample.task: r.verdict.detail for r in results if r.verdict.outcome == "not-here"}
    judged = [task for task in tasks if task.name not in not_here]
    if not judged:
        name, why = next(iter(not_here.items()))
        raise DataError(f"no task can be judged on this machine; {name}, for one: {why}")
    outcomes = Counter(result.verdict.outcome for result in results)
    exact = [r.is_exact for r in results if r.is_exact is not None]
    groups: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(task.group for task in judged):
        names = [task.name for task in judged if task.group == group]
        groups[group] = _row([(counts[name], correct[name]) for name in names], results, names)
    return {
        "benchmark": benchmark,
        "num_tasks": len(judged),
        "num_samples": counts[judged[0].name],
        "is_isolated": is_isolated,
        "settings": asdict(settings) if settings else None,
        "are_solutions": are_solutions,
        "pass_at": _estimates([(counts[task.name], correct[task.name]) for task in judged]),
        "exact_match": sum(exact) / len(exact) if exact else None,
        "groups": groups if any(groups) else {},
        "outcomes": dict(sorted(outcomes.items())),
        "num_timeouts": sum(result.verdict.is_timeout for result in results),
        "num_unproven": sum(r.verdict.is_passed and not r.verdict.is_proven for r in results),
        "not_here": not_here,
        "tasks": {task.name: correct[task.name] for task in judged},
        "unfinished": dict(unfinished or {}),
        "is_cut": is_cut,
        "paper_pass_at_1": {} if unfinished or is_cut else PAPER.get(benchmark, {}),
    }


def check_counts(tasks: Sequence[Task], samples: Sequence[Sample]) -> Counter[str]:
    """Give how many samples a task has. Raises DataError where some have none, or not equally many."""
    counts = Counter(sample.task for sample in samples)
    missing = [task.name for task in tasks if task.name not in counts]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(tasks)} tasks have no samples, {missing[0]} for one; write them, choose tasks with "
            f"--limit or --only, or give --partial to score the others"
        )
    if len(set(counts.values())) > 1:
        (least, few), (most, many) = (
            min((n, t) for t, n in counts.items()),
            max((n, t) for t, n in counts.items()),
        )
        raise DataError(
            f"{few} has {least} samples and {many} {most}; go on with the same command until all are written, or give "
            f"--partial to score the tasks that have all"
        )
    return counts


def _estimates(pairs: Sequence[tuple[int, int]]) -> dict[str, dict[str, float]]:
    return {str(k): asdict(estimate(pairs, k)) for k in KS if k <= pairs[0][0]}


def _row(
    pairs: Sequence[tuple[int, int]], results: Sequence[Result], names: list[str]
) -> dict[str, Any]:
    own = set(names)
    exact = [r.is_exact for r in results if r.sample.task in own and r.is_exact is not None]
    return {
        "num_tasks": len(pairs),
        "pass_at": _estimates(pairs),
        "exact_match": sum(exact) / len(exact) if exact else None,
        "tasks": names,
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """Give a report for people."""
    lines = [f"# {report['benchmark']}", ""]
    if not report["is_isolated"]:
        lines += [
            "**Not isolated: generated code ran with the user's own rights and could forge its files.**",
            "",
        ]
    if report["unfinished"]:
        num_left_out = len(report["unfinished"])
        in_all = num_left_out + report["num_tasks"] + len(report["not_here"])
        lines += [
            f"**In part: {num_left_out} of {in_all} tasks are left out, for they lack samples. This is no score of the "
            f"benchmark, and is not to be compared with one.**",
            "",
        ]
    first = ", the first ones" if report["is_cut"] else ""
    lines += [f"Tasks: {report['num_tasks']}{first}. Samples of each: {report['num_samples']}."]
    settings = report["settings"]
    words = [
        f"{name} {value!r}"
        for name, value in (settings or {}).items()
        if name != "benchmark" and value is not None
    ]
    of_nobody = "How they were drawn is not recorded."
    if report["are_solutions"]:
        of_nobody = "They are the benchmark's own solutions."
    lines += [", ".join(words) + "." if words else of_nobody, ""]
    lines += ["| | % | 95 % interval over tasks |", "|---|---|---|"]
    for k, found in report["pass_at"].items():
        lines.append(f"| pass@{k} | {_percent(found)} |")
    if report["exact_match"] is not None:
        lines.append(f"| exact match | {100 * report['exact_match']:.1f} | |")
    lines += ["", "| outcome | samples |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in report["outcomes"].items()]
    lines += _remarks(report)
    lines += _group_table(report) if report["groups"] else []
    paper = report["paper_pass_at_1"].get("", {})
    if paper:
        lines += ["", "| pass@1, published | % |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in paper.items()]
        own = 100 * report["pass_at"]["1"]["value"]
        lines += [f"| **this run** | **{own:.1f}** |"]
    return "\n".join([*lines, ""])


def _percent(found: Mapping[str, float]) -> str:
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:.1f} | {low:.1f} to {high:.1f}"


def _remarks(report: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if report["num_timeouts"]:
        lines += [
            "",
            f"Out of time, which a faster machine may change: {report['num_timeouts']}.",
        ]
    if report["num_unproven"]:
        lines += [
            "",
            f"Passed by their own word, for their tests ran beside them or none could be falsified: "
            f"{report['num_unproven']}.",
        ]
    if report["not_here"]:
        name, why = next(iter(report["not_here"].items()))
        lines += [
            "",
            f"Tasks left out, for they cannot be judged on this machine: {len(report['not_here'])}; {name}: {why}",
        ]
    return lines


def _group_table(report: Mapping[str, Any]) -> list[str]:
    """Give a row for each language or library, with what is published of it."""
    paper = report["paper_pass_at_1"]
    models = list(dict.fromkeys(name for row in paper.values() for name in row)) if "" not in paper else []  # fmt: skip
    has_exact = any(row["exact_match"] is not None for row in report["groups"].values())
    head = ["", "tasks", "pass@1", "95 %", *(["exact match"] if has_exact else []), *models]
    lines = ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for group, row in report["groups"].items():
        cells = [group or "all", str(row["num_tasks"]), *_percent(row["pass_at"]["1"]).split(" | ")]
        if has_exact:
            exact = row["exact_match"]
            cells.append("" if exact is None else f"{100 * exact:.1f}")
        cells += [str(paper.get(group, {}).get(model, "")) for model in models]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
