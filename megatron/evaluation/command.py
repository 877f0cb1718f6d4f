"""The commands of tools/evaluate.py that need no model: score, report, make-infilling, languages."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.evaluation.benchmark import BENCHMARKS, LIMITS, load_benchmark
from megatron.evaluation.infilling import (
    KINDS,
    infilling_of_folder,
    infilling_of_human_eval,
    write_set,
)
from megatron.evaluation.isolation.sandbox import UNSANDBOXED, Sandbox, can_isolate
from megatron.evaluation.isolation.trial import Limits, Verdict
from megatron.evaluation.journal import Journal
from megatron.evaluation.multipl_e import NUM_FALSIFIED, ProgramTask, equip
from megatron.evaluation.report import check_counts, make_report, to_markdown
from megatron.evaluation.row_file import read_rows
from megatron.evaluation.sample import Sample, Settings, read_samples, read_settings
from megatron.evaluation.score import Result, check_known, finished_part, score
from megatron.evaluation.task import Task
from megatron.evaluation.toolchain import TOOLCHAINS, Installed, Toolchain
from megatron.option_field import require
from megatron.progress import counted
from megatron.whole_file import replacing


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose tasks."""
    group = parser.add_argument_group("tasks")
    group.add_argument("--benchmark", choices=BENCHMARKS, default="humaneval")
    group.add_argument(
        "--tasks-file",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="its JSON lines, .gz or not, or Parquet (HumanEval: default from the package human-eval)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="the first N tasks only")
    group.add_argument(
        "--only", nargs="+", metavar="NAME", help="tasks of these languages or libraries only"
    )
    group.add_argument(
        "--form", choices=("completion", "insertion"), default="completion", help="of DS-1000"
    )


def chosen_tasks(args: argparse.Namespace) -> list[Task]:
    """Read the tasks that the flags choose. Raises ConfigError or DataError."""
    require(args.limit is None or args.limit >= 1, f"--limit is {args.limit}; allowed: from 1")
    tasks = load_benchmark(args.benchmark, args.tasks_file, args.form)
    if args.only:
        groups = {task.group for task in tasks}
        unknown = sorted(set(args.only) - groups)
        if unknown:
            known = ", ".join(sorted(filter(None, groups)))
            allowed = f"allowed: {known}" if known else "these tasks are of one kind; leave it out"
            raise ConfigError(f"--only has {', '.join(unknown)}; {allowed}")
        tasks = [task for task in tasks if task.group in args.only]
    return tasks[: args.limit]


def add_score(parser: argparse.ArgumentParser) -> None:
    """Add the flags of score."""
    add_tasks(parser)
    limits = Limits()
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--samples", type=Path, metavar="FILE", help="JSON lines")
    what.add_argument("--solutions", action="store_true", help="the benchmark's own solutions")
    parser.add_argument(
        "--report", type=Path, metavar="PREFIX", help="default: --samples without its suffix"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="at once (default: the CPUs)",
    )
    parser.add_argument(
        "--wall-seconds",
        type=float,
        help=f"default: {limits.wall_seconds}, DS-1000: {LIMITS['ds1000'].wall_seconds}",
    )
    parser.add_argument(
        "--cpu-seconds",
        type=int,
        help=f"default: {limits.cpu_seconds}, DS-1000: {LIMITS['ds1000'].cpu_seconds}",
    )
    parser.add_argument(
        "--falsified",
        type=int,
        default=NUM_FALSIFIED,
        metavar="N",
        help=f"MultiPL-E: falsified tests that what passes must fail, too (default: {NUM_FALSIFIED}; 0: none)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="leave out the tasks that have not all their samples; the report says that it is no score of the benchmark",
    )
    parser.add_argument(
        UNSANDBOXED,
        action="store_true",
        help="run generated code with your rights where it cannot be isolated; the report says so",
    )


def run_score(args: argparse.Namespace) -> int:
    """Run samples, write results and report."""
    tasks, limits = chosen_tasks(args), _limits(args)
    require(args.workers >= 1, f"--workers is {args.workers}; allowed: from 1")
    require(args.falsified >= 0, f"--falsified is {args.falsified}; allowed: from 0")
    prefix = args.report or (args.samples.with_suffix("") if args.samples else None)
    check_place(prefix, "--report")
    samples = _samples(args, tasks)
    if not samples:
        raise DataError(f"{args.samples} holds no sample of these tasks")
    settings = read_settings(args.samples) if args.samples else None
    _check_benchmark(args, settings, args.samples)
    check_known(tasks, samples)
    of_tasks = hashlib.sha256(repr(tasks).encode()).hexdigest()
    is_cut = len(tasks) == args.limit
    unfinished: Mapping[str, int] = {}
    if args.partial:
        part = finished_part(tasks, samples, settings.num_samples if settings else None)
        tasks, samples, unfinished = list(part.tasks), list(part.samples), part.unfinished
        print(part.what_is_left_out or "all tasks have their samples", file=sys.stderr)
    check_counts(tasks, samples)
    is_isolated = True
    if args.i_accept_unsandboxed:
        is_isolated = can_isolate()
    if not is_isolated:
        print(
            f"{UNSANDBOXED}: generated code runs with your rights and may forge results",
            file=sys.stderr,
        )
    of = {"benchmark": args.benchmark, "limits": asdict(limits), "falsified": args.falsified}
    of |= {"is_isolated": is_isolated, "tasks": of_tasks}
    tasks = equip(tasks, limits, args.falsified)
    _check_languages(tasks, is_isolated=is_isolated)
    with Journal(Path(f"{prefix}.journal.jsonl"), of) if prefix else nullcontext() as journal:
        found = score(
            tasks,
            samples,
            limits,
            num_workers=args.workers,
            is_isolated=is_isolated,
            journal=journal,
        )
        results = list(counted(found, "score", "sample", len(samples)))
        report = make_report(
            args.benchmark,
            tasks,
            results,
            settings,
            is_isolated=is_isolated,
            are_solutions=args.solutions,
            unfinished=unfinished,
            is_cut=is_cut,
        )
        if prefix is not None:
            _write_results(Path(f"{prefix}.results.jsonl"), tasks, results, report)
            write_report(prefix, report, to_markdown(report))
    print(to_markdown(report))
    return 0


def _check_benchmark(args: argparse.Namespace, settings: Settings | None, path: Path) -> None:
    """Raise ConfigError for samples of another benchmark than the flags name."""
    if settings is not None and settings.benchmark != args.benchmark:
        raise ConfigError(
            f"{path} is of {settings.benchmark}, and --benchmark is {args.benchmark}; give --benchmark "
            f"{settings.benchmark}, with its --tasks-file"
        )


def check_place(prefix: Path | None, flag: str) -> None:
    """Raise ConfigError where no report can be written; to be asked before the work."""
    if prefix is not None and not os.access(prefix.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{flag} {prefix}: {prefix.parent} is no folder that can be written to")


def _check_languages(tasks: Sequence[Task], *, is_isolated: bool) -> None:
    """Raise ConfigError for languages whose tools are there and do not run: all their samples would fail for that."""
    for language in sorted({task.group for task in tasks if isinstance(task, ProgramTask)}):
        installed = Installed.find(language)
        assert installed is not None, "equip looked for it"
        verdict = _probe(installed, is_isolated=is_isolated)
        if not verdict.is_passed:
            raise ConfigError(
                f"programs in {language} do not run on this machine: {_why(installed, verdict)}; or choose others with "
                "--only"
            )


def _limits(args: argparse.Namespace) -> Limits:
    limits = LIMITS.get(args.benchmark, Limits())
    given = {"wall_seconds": args.wall_seconds, "cpu_seconds": args.cpu_seconds}
    limits = dataclasses.replace(
        limits, **{name: value for name, value in given.items() if value is not None}
    )
    require(
        limits.wall_seconds > 0 and limits.cpu_seconds >= 1,
        f"--wall-seconds {limits.wall_seconds} --cpu-seconds {limits.cpu_seconds}: allowed are times above 0",
    )
    return limits


def _samples(args: argparse.Namespace, tasks: Sequence[Task]) -> list[Sample]:
    if args.solutions:
        lacking = next((task.name for task in tasks if task.solution is None), None)
        if lacking is not None:
            raise DataError(f"--solutions: the benchmark gives none of {lacking}; give --samples")
        return [Sample(task.name, 0, task.solution or "") for task in tasks]
    samples = read_samples(args.samples)
    if args.limit is None and not args.only:
        return samples
    names = {task.name for task in tasks}
    return [sample for sample in samples if sample.task in names]


def _write_results(
    path: Path, tasks: Sequence[Task], results: list[Result], report: dict[str, Any]
) -> None:
    order = {task.name: number for number, task in enumerate(tasks)}
    results.sort(key=lambda result: (order[result.sample.task], result.sample.number))
    head = ("is_isolated", "settings", "are_solutions", "unfinished")
    rows: list[dict[str, Any]] = [{name: report[name] for name in head}]
    for result in results:
        row = {"task_id": result.sample.task, "sample": result.sample.number}
        exact = {} if result.is_exact is None else {"is_exact": result.is_exact}
        rows.append(row | asdict(result.verdict) | exact)
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_report(prefix: Path, report: dict[str, Any], text: str) -> None:
    """Write a report as JSON and as Markdown. Raises ConfigError."""
    write_file(Path(f"{prefix}.report.json"), json.dumps(report, indent=2) + "\n")
    write_file(Path(f"{prefix}.report.md"), text)


def write_file(path: Path, text: str) -> None:
    """Replace a file in one step. Raises ConfigError."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the flags of report."""
    add_tasks(parser)
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FILE", help="NAME.results.jsonl of score"
    )


def run_report(args: argparse.Namespace) -> int:
    """Print the report of results."""
    tasks = chosen_tasks(args)
    results = list(_results(args.results))
    names = {task.name for task in tasks}
    head = next((row for _, row in read_rows(args.results)), {})
    try:
        settings = Settings(**head["settings"]) if head.get("settings") else None
    except TypeError as error:
        raise DataError(f"{args.results}, line 1: {error}") from None
    _check_benchmark(args, settings, args.results)
    unfinished = head.get("unfinished") or {}
    if not isinstance(unfinished, dict):
        raise DataError(f"{args.results}, line 1: unfinished is no object")
    is_cut = len(tasks) == args.limit
    unfinished = {name: count for name, count in unfinished.items() if name in names}
    tasks = [task for task in tasks if task.name not in unfinished]
    kept = [result for result in results if result.sample.task in names]
    unknown = {result.sample.task for result in results} - names
    if unknown and args.limit is None and not args.only:
        raise DataError(
            f"{args.results} has results of {min(unknown)}, which is no task of the benchmark"
        )
    report = make_report(
        args.benchmark,
        tasks,
        kept,
        settings,
        is_isolated=bool(head.get("is_isolated", False)),
        are_solutions=bool(head.get("are_solutions", False)),
        unfinished=unfinished,
        is_cut=is_cut,
    )
    print(to_markdown(report))
    return 0


def _results(path: Path) -> Iterator[Result]:
    for number, row in read_rows(path):
        if "task_id" in row:
            try:
                sample = Sample(row["task_id"], row["sample"], "")
                proven = bool(row.get("is_proven", True))
                verdict = Verdict(row["outcome"], row["detail"], row["seconds"], proven)
                yield Result(sample, verdict, row.get("is_exact"))
            except KeyError as error:
                raise DataError(f"{path}, line {number} lacks {error}") from None


def add_make_infilling(parser: argparse.ArgumentParser) -> None:
    """Add the flags of make-infilling."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kind", choices=KINDS, help="what to take away of HumanEval's solutions")
    what.add_argument(
        "--from-folder", type=Path, metavar="DIR", help="take a line away of its files"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--tasks-file", type=Path, metavar="FILE", help="HumanEval's lines")
    parser.add_argument("--languages", nargs="+", metavar="NAME", help="of files (default: all)")
    parser.add_argument(
        "--per-language", type=int, default=1000, metavar="N", help="files at most (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")


def run_make_infilling(args: argparse.Namespace) -> int:
    """Write a set for --benchmark infilling."""
    require(args.per_language >= 1, f"--per-language is {args.per_language}; allowed: from 1")
    if args.kind is not None:
        rows = infilling_of_human_eval(args.kind, args.tasks_file, args.seed)
    else:
        languages = set(args.languages or ())
        rows = infilling_of_folder(args.from_folder, languages, args.per_language, args.seed)
    count = write_set(rows, args.output)
    print(f"{args.output}: {count} tasks", file=sys.stderr)
    return 0


def run_languages(args: argparse.Namespace) -> int:
    """Print which of MultiPL-E's languages this machine runs, each tried in a sandbox."""
    for language, toolchain in TOOLCHAINS.items():
        state = "its tests run in the judge" if language == "py" else _state(language)
        print(f"{language:6} {toolchain.title:11} {state}")
    return 0


def _state(language: str) -> str:
    installed = Installed.find(language)
    if installed is None:
        return f"not installed{_advice(TOOLCHAINS[language])}"
    verdict = _probe(installed)
    if verdict.is_passed:
        return f"runs, {verdict.seconds:.1f} s for nothing"
    return f"does not run: {_why(installed, verdict)}"


def _probe(installed: Installed, *, is_isolated: bool = True) -> Verdict:
    """Run a program that does nothing. Raises ConfigError where there is no isolation."""
    limits = Limits()
    with Sandbox(limits, installed.equipment, is_isolated=is_isolated) as sandbox:
        return sandbox.run(installed.trial(installed.toolchain.probe, limits))


def _why(installed: Installed, verdict: Verdict) -> str:
    words = " ".join(verdict.detail.split())[:160]
    return f"{verdict.outcome}: {words}{_advice(installed.toolchain)}"


def _advice(toolchain: Toolchain) -> str:
    return f"; Debian: apt-get install {toolchain.debian}" if toolchain.debian else ""
