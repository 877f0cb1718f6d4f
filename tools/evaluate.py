#!/usr/bin/env python3
"""Measure a model: draw samples of HumanEval and its like, run them isolated, report pass@k; or its perplexity."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron import cli, logging
from megatron.errors import ConfigError
from megatron.evaluation import command, perplexity
from megatron.evaluation.sample import PRESETS, Sample, SampleFile, Settings
from megatron.evaluation.task import Task
from megatron.inference.model_flags import (
    add_model_flags,
    choose_tokenizer,
    load,
)
from megatron.inference.options import SamplingOptions
from megatron.inference.prompt import Order, encode_text, infilling_ends, infilling_ids
from megatron.inference.request import Request, too_long
from megatron.option_field import require
from megatron.parallel.launch import Launch
from megatron.progress import progress_bar

if TYPE_CHECKING:
    from megatron.convert.source import ModelSource
    from megatron.tokenizer.interface import Tokenizer

EXAMPLES = """\
  the paper's setting for pass@1: 200 samples at temperature 0.2; the same command goes on with a file that is there
    python tools/evaluate.py sample --load runs/py --preset pass@1 --samples py.jsonl
  run them, and write py.results.jsonl, py.report.json and py.report.md
    python tools/evaluate.py score --samples py.jsonl
  does this machine judge rightly? The benchmark's own solutions are to score 100 %
    python tools/evaluate.py score --solutions
  other languages, from files of MultiPL-E's data set; `languages` says which of them this machine runs
    python tools/evaluate.py sample --benchmark multipl-e --tasks-file humaneval-js.parquet --preset multipl-e \\
      --load runs/py --samples js.jsonl
  infilling, from a set that is made here, and perplexity by length of context
    python tools/evaluate.py make-infilling --kind single-line --output lines.jsonl
    python tools/evaluate.py perplexity --load runs/py --folder src/ --output ppl

Generated code runs in namespaces of its own; docs/evaluation.md says what it can and cannot do."""

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do one command."""
    parser = cli.make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what, add, run in COMMANDS:
        one = commands.add_parser(name, help=what, description=what)
        one.set_defaults(run=run)
        add(one)
    args = cli.parse_known(parser, argv)
    logging.configure(0)
    return int(args.run(args))


def _add_sample(parser: argparse.ArgumentParser) -> None:
    command.add_tasks(parser)
    add_model_flags(parser, is_alone=True)
    draws = parser.add_argument_group("samples", "A preset, and what is to differ from it.")
    draws.add_argument("--preset", choices=sorted(PRESETS), default="pass@1")
    draws.add_argument("--num-samples", type=int, metavar="N", help="of each task")
    draws.add_argument("--temperature", type=float)
    draws.add_argument("--top-p", type=float)
    draws.add_argument("--max-new-tokens", type=int, default=512)
    draws.add_argument("--seed", type=int, default=0)
    draws.add_argument(
        "--order", choices=("psm", "spm"), default="psm", help="of a text's parts, to fill in"
    )
    draws.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts at once")
    draws.add_argument(
        "--samples", type=Path, required=True, metavar="FILE", help="JSON lines to add to"
    )


def _sample(args: argparse.Namespace) -> int:
    """Draw what is missing of the samples."""
    launch = Launch.from_environment()
    require(launch.world_size == 1, "sample runs in one process; give each its own --samples")
    tasks, settings = command.chosen_tasks(args), _settings(args)
    require(args.batch_size >= 1, f"--batch-size is {args.batch_size}; allowed: from 1")
    options = SamplingOptions(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    options.check()
    source, tokenizer = _open(args)
    settings = dataclasses.replace(settings, iteration=source.iteration)
    with SampleFile(args.samples, settings) as file:
        missing = [task for task in tasks if not file.has_all(task.name, settings.num_samples)]
        positions = source.model.max_position_embeddings
        requests = [_request(task, settings, options, positions, tokenizer) for task in missing]
        if requests:
            _draw(args, launch, source, tokenizer, requests, file)
    print(f"{args.samples}: {len(file.done)} samples of {len(tasks)} tasks", file=sys.stderr)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    preset = PRESETS[args.preset]
    chosen = {key: getattr(args, key, None) for key in preset}
    settings = Settings(
        benchmark=args.benchmark,
        model=str(args.load),
        iteration=args.iteration,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        form=args.form,
        order=args.order,
        **{key: preset[key] if value is None else value for key, value in chosen.items()},
    )
    require(settings.num_samples >= 1, f"--num-samples is {settings.num_samples}; allowed: from 1")
    require(
        settings.num_samples == 1 or settings.temperature > 0,
        f"{settings.num_samples} samples at temperature 0 are the same text; give --num-samples 1",
    )
    return settings


def _request(
    task: Task,
    settings: Settings,
    options: SamplingOptions,
    positions: int,
    tokenizer: Tokenizer,
) -> Request:
    options, ends = dataclasses.replace(options, stop=task.stop), frozenset[int]()
    if task.model_suffix is None:
        ids = [
            *encode_text(tokenizer, settings.prefix, reads_sentinels=True),
            *encode_text(tokenizer, task.model_prompt, reads_sentinels=False),
        ]
    else:
        order: Order = "spm" if settings.order == "spm" else "psm"
        room = positions - options.max_new_tokens
        ids = infilling_ids(tokenizer, task.model_prompt, task.model_suffix, order, max(room, 0))
        ends = infilling_ends(tokenizer)
    require(
        len(ids) + options.max_new_tokens <= positions,
        f"{task.name}: {too_long(positions, len(ids), options.max_new_tokens)}",
    )
    return Request(task.name, tuple(ids), options, settings.num_samples, ends)


def _open(args: argparse.Namespace) -> tuple[ModelSource, Tokenizer]:
    """Open the model and its tokenizer. Raises MegatronError."""
    from megatron.convert.source import ModelSource

    source = ModelSource.open(args.load, args.iteration, accepts_exact_gelu=args.gelu_as_tanh)
    return source, choose_tokenizer(args, source.tokenizer, source.model.vocab_size)


def _draw(
    args: argparse.Namespace,
    launch: Launch,
    source: ModelSource,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    file: SampleFile,
) -> None:
    import torch.distributed as dist

    names = {request.name for request in requests}
    num_done = sum(name in names for name, _ in file.done)
    engine = load(args, launch, source).engine(tokenizer, args.batch_size)
    try:
        for request in requests:
            engine.add(request)
        total = sum(request.num_samples for request in requests) - num_done
        with progress_bar(total, "sample", "sample") as bar:
            while not engine.is_idle:
                for update in engine.step():
                    if update.completion is not None:
                        before = len(file.done)
                        file.add(Sample(update.request, update.sample, update.completion.text))
                        bar.update(len(file.done) - before)
    except OSError as error:
        raise ConfigError(f"--samples {args.samples} cannot be written: {error.strerror}") from None
    finally:
        dist.destroy_process_group()


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser, is_alone=True)
    perplexity.add_arguments(parser)


def _perplexity(args: argparse.Namespace) -> int:
    """Measure how well text is predicted. In one process."""
    launch = Launch.from_environment()
    require(launch.world_size == 1, "perplexity is measured in one process")
    command.check_place(args.output, "--output")
    source, tokenizer = _open(args)
    plan = perplexity.plan_of(args, source.model.max_position_embeddings, tokenizer)
    import torch.distributed as dist

    from megatron.inference.token_scorer import TokenScorer

    scorer = TokenScorer(load(args, launch, source).runner(1))
    try:
        with progress_bar(plan.num_scores, "perplexity", "token") as bar:
            report = plan.run(scorer.log_probabilities, bar.update)
    finally:
        dist.destroy_process_group()
    report |= {"model": str(args.load), "iteration": source.iteration}
    text = perplexity.to_markdown(report)
    if args.output is not None:
        command.write_report(args.output, report, text)
    print(text)
    return 0


COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None], Run], ...] = (
    ("sample", "draw samples from a model", _add_sample, _sample),
    ("score", "run samples against the tests, and report", command.add_score, command.run_score),
    ("report", "report results that are there already", command.add_report, command.run_report),
    (
        "make-infilling",
        "make a set to fill in, of HumanEval or of a folder",
        command.add_make_infilling,
        command.run_make_infilling,
    ),
    (
        "languages",
        "say which of MultiPL-E's languages this machine runs",
        lambda parser: None,
        command.run_languages,
    ),
    ("perplexity", "measure how well a model predicts text", _add_perplexity, _perplexity),
)

if __name__ == "__main__":
    cli.run_tool(main)
