"""`bench.py data`: the data engine side by side with what others use, in one run, as ratios with their spread."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron.benchmark import dataset, samples, text
from megatron.benchmark.bench import Bench
from megatron.benchmark.measure import Row, shown, table
from megatron.benchmark.output import machine
from megatron.benchmark.shape import VOCAB_SIZE
from megatron.benchmark.source import python_source, read_texts, shorten
from megatron.errors import ConfigError, DataError
from megatron.tokenizer.json_tokenizer import read_definition
from megatron.tokenizer.train import train_tokenizer

EXAMPLES = """\
  everything, on the Python source of this machine (a quarter of an hour):
    python tools/bench.py data
  the encoder and fill in the middle, on your text, with your tokenizer:
    python tools/bench.py data --only encode fim --input code.jsonl --tokenizer-file tokenizer.json
  with the tools of others, from checkouts:
    python tools/bench.py data --only preprocess --megatron-lm ../Megatron-LM --bigcode ../bigcode-Megatron-LM

peers are timed if they are installed: pip install tiktoken gigatoken datatrove megatron-core"""
SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "encode": text.encode,
    "preprocess": text.preprocess,
    "open": dataset.open_dataset,
    "read": dataset.random_read,
    "blend": dataset.blend,
    "fim": samples.fim,
    "loader": samples.loader,
}
TRAINING_MB = 20  # of text for a tokenizer of our own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py data`."""
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="some of its rows")
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        metavar="JSONL",
        help="text (default: Python source found here)",
    )
    parser.add_argument("--json-key", default="text", metavar="KEY", help="of the text in --input")
    parser.add_argument(
        "--tokenizer-file", type=Path, help="tokenizer.json (default: one trained on the text)"
    )
    parser.add_argument("--megabytes", type=float, default=20.0, help="of text, at most")
    parser.add_argument(
        "--documents", type=int, default=50_000_000, help="of the dataset that is opened"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times each side is measured")
    parser.add_argument(
        "--megatron-lm", type=Path, metavar="DIR", help="a checkout of NVIDIA's Megatron-LM"
    )
    parser.add_argument(
        "--bigcode", type=Path, metavar="DIR", help="a checkout of BigCode's Megatron-LM"
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PYTHON",
        help="with what the checkouts need, and without this project (default: this one)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure the sections that are asked for, and print their table."""
    if args.rounds < 1 or args.documents < 1 or args.megabytes <= 0:
        raise ConfigError("--rounds, --documents and --megabytes must be above 0")
    for flag in ("megatron_lm", "bigcode"):
        folder = getattr(args, flag)
        if folder is not None and not (folder / "tools/preprocess_data.py").is_file():
            raise DataError(
                f"--{flag.replace('_', '-')} {folder} holds no tools/preprocess_data.py"
            )

    given = read_texts(args.input, args.json_key) if args.input else python_source()
    texts = shorten(given, args.megabytes)
    if args.tokenizer_file:
        definition = read_definition(args.tokenizer_file)
    else:
        definition = train_tokenizer(shorten(texts, TRAINING_MB), VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            texts,
            definition,
            Path(folder),
            args.rounds,
            args.documents,
            megatron_lm=args.megatron_lm and args.megatron_lm.resolve(),
            bigcode=args.bigcode and args.bigcode.resolve(),
            peer_python=args.peer_python,
        )
        bench.check()
        print(_describe(bench), file=sys.stderr)
        sections = args.only or SECTIONS
        rows = shown(row for name in sections for row in SECTIONS[name](bench))
    print(table(rows))


def _describe(bench: Bench) -> str:
    """Say on what is measured."""
    return (
        f"{len(bench.texts):,} texts, {bench.megabytes:.1f} MB; {len(bench.definition['model']['vocab']):,} ids; "
        f"{bench.rounds} rounds; {machine()}"
    )
