#!/usr/bin/env python3
"""Write text with a model: continue prompts, or fill in what is missing between two parts of a file."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron import cli, logging
from megatron.attribution.options import ReviewOptions
from megatron.errors import ConfigError
from megatron.inference.job import (
    Fitting,
    Job,
    make_request,
    read_jobs,
    read_text,
    split_at_cursor,
)
from megatron.inference.model_flags import (
    add_model_flags,
    check_processes,
    choose_tokenizer,
    load,
    with_one_voice,
)
from megatron.inference.options import SamplingOptions
from megatron.inference.request import Completion, Update
from megatron.inference.writer import Write, json_writer, text_writer
from megatron.option_field import require
from megatron.parallel.launch import Launch
from megatron.progress import progress_bar
from megatron.tokenizer.chat_template import ChatEncoder, Message, choose_template

if TYPE_CHECKING:
    from megatron.attribution.review import Review, Reviewer
    from megatron.convert.source import ModelSource
    from megatron.tokenizer.interface import Tokenizer

EXAMPLES = """\
  continue a text; the model is a run's folder or one of transformers (GPTBigCode, Starcoder2):
    python tools/generate.py --load runs/py --prompt 'def fibonacci(n):' --max-new-tokens 64
    cat start.py | python tools/generate.py --load huggingface/ --temperature 0.2 --top-p 0.95 -n 4
  fill in at the mark <CURSOR> of a file, or between two texts:
    python tools/generate.py --load runs/py --file main.py --echo
    python tools/generate.py --load runs/py --prefix 'def area(w, h):' --suffix '    return a' --order spm
  ask a model that was tuned on conversations:
    python tools/generate.py --load runs/chat --chat 'Write a function that adds two numbers.'
  many prompts, lines such as {"id": "a", "prompt": "def f(", "n": 20, "options": {"seed": 7}}:
    python tools/generate.py --load runs/py --input prompts.jsonl --output texts.jsonl --temperature 0.8
  say where it stands in the training data, and give no text with ten lines of it (tools/attribute.py build):
    python tools/generate.py --load runs/py --prompt 'def f(' --attribution data/py --verbatim withhold
  a model too large for one GPU, by two that share each layer:
    python tools/launch.py --standalone --nproc-per-node 2 tools/generate.py --load runs/15b \\
      --tensor-model-parallel-size 2 --prompt-file start.py

The same options and seed write the same text, whatever else is in the batch. docs/generation.md has more."""


CURSOR = "<CURSOR>"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, load, write."""
    args = _parse(argv)
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    return with_one_voice(launch, lambda: _run(args, launch))


def _run(args: argparse.Namespace, launch: Launch) -> int:
    """Check all that was given, then write. Collective over all processes."""
    options = cli.section_from(args, SamplingOptions)
    options.check()
    cli.section_from(args, ReviewOptions).check()
    jobs = list(_jobs(args, options, launch))
    _check(args, jobs, launch)
    return _generate(args, jobs, launch)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__ or "", EXAMPLES)
    add_model_flags(parser)
    prompt = parser.add_argument_group("prompt", "One of these; stdin if there is none.")
    prompt.add_argument("--prompt", help="text to continue")
    prompt.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="the same in a file; - is stdin"
    )
    prompt.add_argument("--prefix", help="text before what is to be filled in")
    prompt.add_argument("--suffix", help="text after it")
    prompt.add_argument(
        "--file", type=Path, metavar="FILE", help="a file with a cursor to fill in at"
    )
    prompt.add_argument("--cursor", default=CURSOR, help=f"its mark (default: {CURSOR})")
    prompt.add_argument(
        "--input", type=Path, metavar="FILE", help="JSON lines of prompts; - is stdin"
    )
    prompt.add_argument("--chat", metavar="TEXT", help="a user's message to answer")
    prompt.add_argument(
        "--chat-template",
        metavar="NAME",
        help="of --chat and of messages in --input: starchat, plain or a file (default: that of the model's training)",
    )
    prompt.add_argument(
        "--order",
        choices=("psm", "spm"),
        default="psm",
        help="of an infilling's parts (default: psm)",
    )
    prompt.add_argument(
        "--sentinels", action="store_true", help="<filename> and the like in a prompt are sentinels"
    )
    prompt.add_argument(
        "--truncate",
        action="store_true",
        help="cut prompts that are too long, far from the new text",
    )
    cli.add_section(parser, SamplingOptions, title="sampling")
    cli.add_section(parser, ReviewOptions, title="where texts come from")
    output = parser.add_argument_group("output")
    output.add_argument(
        "-n", type=int, default=1, metavar="N", help="samples of each prompt (default: 1)"
    )
    output.add_argument("--json", action="store_true", help="JSON lines in place of text")
    output.add_argument("--output", type=Path, metavar="FILE", help="write JSON lines there")
    output.add_argument("--echo", action="store_true", help="print the prompt with the text")
    output.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="texts at once (default: 16)"
    )
    return cli.parse_known(parser, argv)


def _jobs(args: argparse.Namespace, options: SamplingOptions, launch: Launch) -> Iterator[Job]:
    """Read what is asked for. Raises ConfigError or DataError."""
    is_between = args.prefix is not None or args.suffix is not None
    given = {
        "--prompt": args.prompt is not None,
        "--prompt-file": args.prompt_file is not None,
        "--prefix and --suffix": is_between,
        "--file": args.file is not None,
        "--input": args.input is not None,
        "--chat": args.chat is not None,
    }
    flags = [flag for flag, is_given in given.items() if is_given]
    require(len(flags) < 2, f"{' and '.join(flags)} are given; keep one of them")
    require(args.n >= 1, f"-n is {args.n}; allowed: from 1")
    reads_stdin = not flags or "-" in (str(args.prompt_file), str(args.input))
    require(
        launch.world_size == 1 or not reads_stdin,
        "several processes cannot share stdin; give --prompt, --prompt-file or --input with a file",
    )
    if not flags and sys.stdin.isatty():
        raise ConfigError(
            "there is no prompt; give --prompt TEXT, --file FILE or --input FILE; see --help"
        )
    if args.input is not None:
        yield from read_jobs(args.input, options, args.n)
        return
    if args.chat is not None:
        messages = (Message("user", args.chat),)
        yield Job("chat", "--chat", "", None, options, args.n, messages)
        return
    where, prefix, suffix = "prompt", args.prompt, None
    if is_between:
        where, prefix, suffix = "--prefix and --suffix", args.prefix or "", args.suffix or ""
    elif args.file is not None:
        where = f"--file {args.file}"
        prefix, suffix = split_at_cursor(read_text("--file", args.file), args.cursor, where)
    elif prefix is None:
        prefix = read_text("--prompt-file", args.prompt_file or Path("-"))
    yield Job("prompt", where, prefix, suffix, options, args.n)


def _check(args: argparse.Namespace, jobs: list[Job], launch: Launch) -> None:
    check_processes(args, launch)
    require(bool(jobs), f"--input {args.input} holds no prompt")
    require(args.batch_size >= 1, f"--batch-size is {args.batch_size}; allowed: from 1")
    if args.output is not None and launch.rank == 0:
        with _naming_output(args.output), args.output.open("a"):
            pass  # before a model is loaded; what is there stays until there is something to write
    for job in jobs:
        require(
            job.num_samples == 1 or job.options.temperature > 0,
            f"{job.where}: {job.num_samples} samples with --temperature 0 are the same text; give --temperature 0.2 "
            f"or more",
        )
        require(
            job.options.logprobs is None or args.json or args.output is not None,
            "--logprobs are written as JSON; give --json or --output FILE",
        )


def _generate(args: argparse.Namespace, jobs: list[Job], launch: Launch) -> int:
    """Load the model and write. Collective over all processes."""
    from megatron.convert.source import ModelSource

    source = ModelSource.open(args.load, args.iteration, accepts_exact_gelu=args.gelu_as_tanh)
    tokenizer = choose_tokenizer(args, source.tokenizer, source.model.vocab_size)
    fitting = Fitting(
        args.order,
        args.sentinels,
        args.truncate,
        shortens=not hasattr(args, "max_new_tokens"),
        chat=_chat(args, source, tokenizer) if any(job.messages for job in jobs) else None,
    )
    positions = source.model.max_position_embeddings
    requests = [
        make_request(job, str(number), tokenizer, positions, fitting)
        for number, job in enumerate(jobs)
    ]
    reviewer = _reviewer(args, tokenizer, launch)
    # torch takes seconds to import: a user's mistake does not wait for it
    import torch.distributed as dist

    from megatron.parallel.lost_peer import check_launcher, losses_named

    num_texts = sum(job.num_samples for job in jobs)
    with losses_named():
        engine = load(args, launch, source).engine(tokenizer, min(args.batch_size, num_texts))
        for request in requests:
            engine.add(request)
        start, counts = time.perf_counter(), Counts()
        with _reviewing_writer(args, tokenizer, jobs, launch, reviewer) as write:
            while not engine.is_idle:
                check_launcher(launch)
                for update in engine.step():
                    counts.add(update.completion is not None, update.token is not None)
                    write(jobs[int(update.request)], update)
    if launch.rank == 0:
        print(counts.summary(time.perf_counter() - start, args.output), file=sys.stderr)
    dist.destroy_process_group()
    return 0


def _chat(args: argparse.Namespace, source: ModelSource, tokenizer: Tokenizer) -> ChatEncoder:
    """Give what encodes messages as the model's training did, or as asked for."""
    if args.chat_template is not None:
        return ChatEncoder(tokenizer, choose_template(args.chat_template, tokenizer))
    template = source.chat_template()
    if template is None:
        raise ConfigError(
            f"{args.load} was trained on no conversations: it has no template for messages; give --chat-template plain, "
            "or --prompt to continue a text"
        )
    return ChatEncoder(tokenizer, template)


@dataclass
class Counts:
    """What was written."""

    texts: int = 0
    tokens: int = 0

    def add(self, is_end: bool, is_token: bool) -> None:
        self.texts += is_end
        self.tokens += is_token

    def summary(self, seconds: float, output: Path | None) -> str:
        place = f"{output}: " if output else ""
        speed = f"{self.tokens / max(seconds, 1e-9):,.0f} tokens/s"
        return f"{place}{self.texts:,} text{'s' * (self.texts != 1)}, {self.tokens:,} tokens in {seconds:,.1f} s, {speed}"


def _write_utf8() -> None:
    """Let stdout take any text, whatever the locale is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _reviewer(args: argparse.Namespace, tokenizer: Tokenizer, launch: Launch) -> Reviewer | None:
    """Give what looks texts up in the training data, on the first process, if that is asked for."""
    options = cli.section_from(args, ReviewOptions)
    if launch.rank > 0 or not options.attribution:
        return None
    from megatron.attribution.review import Reviewer

    return Reviewer(options, tokenizer)


@contextlib.contextmanager
def _naming_output(path: Path) -> Iterator[None]:
    """Raise ConfigError for a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def _reviewing_writer(
    args: argparse.Namespace,
    tokenizer: Tokenizer,
    jobs: list[Job],
    launch: Launch,
    reviewer: Reviewer | None,
) -> Iterator[Write]:
    """Give what takes updates, and looks finished texts up in the training data first if that is asked for."""
    if reviewer is None:
        with _writer(args, tokenizer, jobs, launch, {}) as write:
            yield write
        return
    reviews: dict[tuple[str, int], Review] = {}
    with _writer(args, tokenizer, jobs, launch, reviews) as write:

        def review_and_write(job: Job, update: Update) -> None:
            completion = update.completion
            if completion is None:
                if not reviewer.withholds:
                    write(job, update)
                return
            review = reviewer(completion.text)
            reviews[completion.request, completion.sample] = review
            if reviewer.withholds:
                if review.is_too_much:
                    # its scores spell its tokens
                    completion = replace(completion, text="", scores=(), finish_reason="withheld")
                update = replace(update, text=completion.text, completion=completion)
            write(job, update)
            if not (args.json or args.output):
                if reviewer.withholds and review.is_too_much:
                    print("this text is withheld (--verbatim withhold):", file=sys.stderr)
                for line in review.lines():
                    print(line, file=sys.stderr)

        yield review_and_write


@contextlib.contextmanager
def _writer(
    args: argparse.Namespace,
    tokenizer: Tokenizer,
    jobs: list[Job],
    launch: Launch,
    reviews: Mapping[tuple[str, int], Review],
) -> Iterator[Write]:
    """Give what takes updates: on the first process a file or the terminal, on others nothing."""

    def more(completion: Completion) -> dict[str, Any]:
        review = reviews.get((completion.request, completion.sample))
        return {} if review is None else {"attribution": review.answer}

    if launch.rank > 0:
        yield lambda job, update: None
    elif args.output is not None:
        total = sum(job.num_samples for job in jobs)
        with (
            _naming_output(args.output),
            args.output.open("w", encoding="utf-8") as file,
            progress_bar(total, "generate", "text") as bar,
        ):
            write = json_writer(file, tokenizer, more)

            def write_and_count(job: Job, update: Update) -> None:
                write(job, update)
                bar.update(update.completion is not None)

            yield write_and_count
    elif args.json:
        _write_utf8()
        yield json_writer(sys.stdout, tokenizer, more)
    else:
        _write_utf8()
        is_one = len(jobs) == 1 and jobs[0].num_samples == 1
        if is_one and args.echo:
            sys.stdout.write(jobs[0].prefix)
        yield text_writer(sys.stdout, streams=is_one, echoes=args.echo)


if __name__ == "__main__":
    cli.run_tool(main)
