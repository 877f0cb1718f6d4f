#!/usr/bin/env python3
"""Check token files, and look into what a run has read; starts nothing and needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tqdm import tqdm

from megatron.cli import (
    EXIT_USER_ERROR,
    add_section,
    make_parser,
    parse_known,
    run_tool,
    section_from,
)
from megatron.data.verify_dataset import dataset_files, verify_dataset
from megatron.errors import ConfigError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer
from megatron.training.trace import RunRecord, RunTrace, describe, samples_of_step, to_json

EXAMPLES = """\
  are these datasets whole, and made with this tokenizer?
    python tools/verify.py data data/py_text_document data/cpp_text_document --tokenizer-file tokenizer.json
  which files did process 3 read in step 1200?
    python tools/verify.py sample --load runs/a --step 1200 --rank 3
  the same for programs, and a sample of a validation set by number with its text
    python tools/verify.py sample --load runs/a --step 1200 --rank 3 --json
    python tools/verify.py sample --load runs/a --set valid --sample 17 --text"""


def main() -> int | None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_data(commands)
    _add_sample(commands)
    args = parse_known(parser, None)
    return args.run(args)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "data",
        help="check token files: all that is in them, and their checksums",
        description="Read all files of datasets once: header, sizes, pointers, documents, the range of ids, provenance "
        "and checksums. One line for each dataset; exit code 2 and a line for each finding if something is wrong.",
    )
    parser.add_argument(
        "prefix", nargs="+", metavar="PREFIX", help="the path of .bin and .idx without these"
    )
    add_section(parser, TokenizerConfig, title="tokenizer, to check that ids are of its range")
    parser.set_defaults(run=_data)


def _data(args: argparse.Namespace) -> int:
    is_given = any(hasattr(args, field.name) for field in dataclasses.fields(TokenizerConfig))
    vocab_size = None
    if is_given:
        vocab_size = build_tokenizer(section_from(args, TokenizerConfig)).vocab_size
    files = [path for prefix in args.prefix for path in dataset_files(prefix)]
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="verify") as bar:
        reports = [
            verify_dataset(prefix, vocab_size=vocab_size, on_bytes=bar.update)
            for prefix in args.prefix
        ]
    for report in reports:
        print(report.describe())
        for finding in report.findings:
            print(f"  {finding}", file=sys.stderr)
    return EXIT_USER_ERROR if any(report.findings for report in reports) else 0


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "sample",
        help="name the documents that samples were made of",
        description="Name the documents that the samples of a step, or samples by number, were made of. Reads the "
        "JSON files of a run's checkpoints and its token files, whose paths are as the run was given them: start it "
        "in the same folder.",
    )
    parser.add_argument(
        "--load", type=Path, required=True, metavar="DIR", help="a run's --save, or an iter_ folder"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, help="training samples of this step, from 1 as logged")
    which.add_argument("--sample", type=int, nargs="+", metavar="N", help="samples by number")
    parser.add_argument(
        "--rank",
        type=int,
        help="with --step: only what this process read, as torchrun counts processes; those of one tensor and "
        "pipeline parallel group read the same (default: the whole step)",
    )
    parser.add_argument(
        "--world-size", type=int, help="processes of the run, if its checkpoints do not say"
    )
    parser.add_argument(
        "--set", default="train", metavar="NAME", help="with --sample: train (default), valid, …"
    )
    parser.add_argument(
        "--text", action="store_true", help="also what the model reads, after fill-in-the-middle"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a sample")
    parser.set_defaults(run=_sample)


def _sample(args: argparse.Namespace) -> None:
    if args.step is not None and args.set != "train":
        raise ConfigError(
            f"--step counts steps of training, and a validation of {args.set} reads its samples from 0 on every "
            "time; give --sample"
        )
    if args.rank is not None and args.step is None:
        raise ConfigError("--rank says who read the samples of a --step; leave it out")
    record = RunRecord.open(args.load, args.step)
    numbers = args.sample or samples_of_step(
        record, args.step, rank=args.rank, world_size=args.world_size
    )
    run = RunTrace(record)
    for number in numbers:
        traced = run.trace(args.set, number)
        text = run.text(args.set, number) if args.text else None
        if args.json:
            print(json.dumps(to_json(traced, args.set) | ({"text": text} if args.text else {})))
            continue
        print(*describe(traced, args.set), sep="\n")
        if text is not None:
            print(*(f"  | {line}" for line in text.splitlines()), sep="\n")
    if not args.json:
        print(f"traced {len(numbers)}, with the options of {record.folder}")


if __name__ == "__main__":
    run_tool(main)
