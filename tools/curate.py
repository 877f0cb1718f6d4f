#!/usr/bin/env python3
"""Turn repositories and raw records into training text, with a ledger of what became of every file."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import megatron.logging
from megatron.cli import (
    add_section,
    end_on_sigterm,
    make_parser,
    parse_known,
    run_tool,
    section_from,
)
from megatron.curation.blend import MixConfig
from megatron.curation.collect import CollectConfig, plan_folders
from megatron.curation.mix import mix
from megatron.curation.pii.train import report_table, train
from megatron.curation.pii.train_options import PiiTrainConfig
from megatron.curation.pipeline import read_pipeline
from megatron.curation.run import data_card, estimate, ledger
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import OnBytes, Step, plan, run_steps
from megatron.curation.run.record_io import Source, no_text
from megatron.curation.stages import STAGES
from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.progress import progress_bar
from megatron.tokenizer.tokenizer import build_tokenizer

EXAMPLES = """\
  from folders of repositories to clean files, one stage after the other:
    python tools/curate.py collect ~/repositories --output curated/all --workers 8
    python tools/curate.py select --input curated/all --output curated/selected --opt-out optout.txt
    python tools/curate.py filter --input curated/selected --output curated/filtered
    python tools/curate.py dedup --input curated/filtered --output curated/unique
  the same in one command, and what it would do:
    python tools/curate.py run pipeline.yaml
    python tools/curate.py run pipeline.yaml --dry-run
  how much there is of each language, and the blend that training reads:
    python tools/curate.py mix --input curated/unique --output mixed --tokenizer-file tokenizer.json
  a model that finds names and passwords, from texts with spans, and its use:
    python tools/curate.py pii-train --input annotated.jsonl --output pii-model --encoder starencoder
    python tools/curate.py pii --input curated/unique --output curated/redacted --model pii-model
  why a file is, or is not, in the data:
    python tools/curate.py why --output curated/unique octocat/hello:src/a.py"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stages(commands)
    collect = _add(commands, "collect", "walk folders of repositories or packages into records")
    collect.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="folders to walk")
    add_section(collect, RunOptions, title="output")
    add_section(collect, CollectConfig, title="collect")
    run = _add(commands, "run", "run the stages of a YAML file")
    run.add_argument("pipeline", type=Path, help="YAML: input, output, stages (docs/curation.md)")
    add_section(run, RunOptions, title="input and output, which the file states too")
    blend = _add(commands, "mix", "count tokens by language and source, and write the blend")
    add_section(blend, RunOptions, title="input and output")
    add_section(blend, MixConfig, title="mix")
    add_section(blend, TokenizerConfig, title="tokenizer")
    teach = _add(commands, "pii-train", "train a model that finds names, user names and passwords")
    add_section(teach, RunOptions, title="input and output")
    add_section(teach, PiiTrainConfig, title="pii-train")
    why = _add(commands, "why", "say what became of a document, and by which rule")
    why.add_argument("id", nargs="?", help="its id, as the records and the ledger have it")
    why.add_argument("--output", type=Path, required=True, help="folder that curate.py wrote")
    card = _add(commands, "card", "write the data card of a folder again")
    card.add_argument("--output", type=Path, required=True, help="folder that curate.py wrote")
    args = parse_known(parser, given)
    megatron.logging.configure()
    end_on_sigterm("what is finished is kept, and the same command goes on")
    tqdm.monitor_interval = 0  # its thread must not be there when workers are forked
    if args.command == "why":
        explain(args.output, args.id)
    elif args.command == "card":
        print(f"wrote {data_card.write_card(args.output)}")
    elif args.command == "mix":
        blend_groups(args, given)
    elif args.command == "pii-train":
        train_pii(args)
    else:
        curate(args, given)


def _add(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    return parser


def _add_stages(commands: Any) -> None:
    for name, kind in STAGES.items():
        parser = _add(commands, name, kind.help)
        add_section(parser, RunOptions, title="input and output")
        add_section(parser, kind.config, title=name)


def curate(args: argparse.Namespace, given: Sequence[str]) -> None:
    """Run the stages that the command names."""
    steps: list[Step] = []
    sources: list[Source] | None = None
    if args.command == "run":
        options, steps = read_pipeline(args.pipeline, args)
    elif args.command == "collect":
        args.input = [str(root) for root in args.roots]
        options = section_from(args, RunOptions)
    else:
        options = section_from(args, RunOptions)
        kind = STAGES[args.command]
        steps = [kind.make(section_from(args, kind.config))]
    options.check()
    if args.command == "collect":
        folders = plan_folders(
            args.roots,
            section_from(args, CollectConfig),
            shard_bytes=options.shard_bytes,
            max_document_bytes=options.max_document_bytes,
        )
        sources = list(folders)
        if not sources:
            raise DataError(f"no file below {', '.join(options.input)}")
    if options.dry_run:
        print(estimate.estimate(steps, options, sources=sources).describe())
        return
    is_new = not (options.output and (options.folder / "run.json").exists())
    start = time.monotonic()
    with logging_redirect_tqdm([megatron.logging.get_logger("megatron")]):
        totals = run_steps(steps, options, sources=sources, command=given, progress=show)
    seconds = time.monotonic() - start
    data_card.write_card(options.folder)
    if not totals.num_read and totals.bad[no_text(options.text_key)]:
        raise DataError(
            f"no record of {', '.join(options.input)} has text under {options.text_key!r}; name the key that has by "
            "--text-key (The Stack: content), with --overwrite"
        )
    # Of a run that goes on, what was done before took no time now.
    speed = f" ({totals.bytes_read / 1e6 / max(seconds, 1e-9):,.1f} MB/s)" if is_new else ""
    print(f"{options.output}: {totals.describe()}; {seconds:,.1f} s{speed}")


def blend_groups(args: argparse.Namespace, given: Sequence[str]) -> None:
    """Count tokens and write the blend."""
    options, config = section_from(args, RunOptions), section_from(args, MixConfig)
    options.check()
    config.check()
    if options.dry_run:
        raise ConfigError("mix has no --dry-run; give a part of the input instead")
    tokenizer = build_tokenizer(section_from(args, TokenizerConfig))
    size = sum(source.num_bytes for source in plan(options))
    with show("mix", size) as on_bytes:
        mixture = mix(options, config, tokenizer, command=given, on_bytes=on_bytes)
    print(mixture.describe())
    print(f"{options.output}: data_path.txt, weighted_split_paths.txt, tokens.json")


def train_pii(args: argparse.Namespace) -> None:
    """Train a classifier of tokens and print how well it finds what was held out."""
    options, config = section_from(args, RunOptions), section_from(args, PiiTrainConfig)
    options.check()
    if options.dry_run:
        raise ConfigError("pii-train has no --dry-run; give a part of the input and --epochs 1")
    with progress_bar(None, "pii-train", "step") as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with logging_redirect_tqdm([megatron.logging.get_logger("megatron")]):
            best = train(options, config, on_step=on_step)
    print(report_table(best))
    print(f"{options.output}: the model, for curate.py pii --model {options.output}")


@contextlib.contextmanager
def show(name: str, total: int) -> Iterator[OnBytes]:
    """Show a step as a bar."""
    with progress_bar(total, name) as bar:
        yield bar.update


def explain(output: Path, id: str | None) -> None:
    """Print every decision about a document."""
    answers = ledger.why(output, id) if id else []
    if not answers:
        said = f"the ledger of {output} has no document {id!r}" if id else "no id is given"
        examples = " and ".join(map(shlex.quote, ledger.example_ids(output, id or "")))
        raise DataError(f"{said}; ids of {output} are as {examples}" if examples else said)
    for folder, entry in answers:
        print(f"{folder}: {ledger.describe(entry)}")


if __name__ == "__main__":
    run_tool(main)
