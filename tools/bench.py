#!/usr/bin/env python3
"""Measure speeds side by side with what others use, in one run, as ratios with their spread."""

from __future__ import annotations

import json
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from megatron.benchmark import dataset, samples, text
from megatron.benchmark.bench import Bench
from megatron.benchmark.measure import Row, table
from megatron.cli import make_parser, parse_known, run_tool
from megatron.data.document_reader import check_inputs
from megatron.errors import ConfigError, DataError
from megatron.tokenizer.json_tokenizer import read_definition
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
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
VOCAB_SIZE = 49152  # StarCoder §5.3
TRAINING_MB = 20  # of text for a tokenizer of our own


def main() -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument("what", choices=["data"], help="the part of the system to measure")
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
    args = parse_known(parser, None)
    if args.rounds < 1 or args.documents < 1 or args.megabytes <= 0:
        raise ConfigError("--rounds, --documents and --megabytes must be above 0")
    for flag in ("megatron_lm", "bigcode"):
        folder = getattr(args, flag)
        if folder is not None and not (folder / "tools/preprocess_data.py").is_file():
            raise DataError(
                f"--{flag.replace('_', '-')} {folder} holds no tools/preprocess_data.py"
            )

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as ours
    texts = list(read_texts(args.input, args.json_key) if args.input else python_source())
    texts = shorten(texts, args.megabytes)
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
        print(describe(bench), file=sys.stderr)
        rows: list[Row] = []
        for name in args.only or SECTIONS:
            for row in SECTIONS[name](bench):
                print("  ".join(cell for cell in row.cells() if cell), file=sys.stderr, flush=True)
                rows.append(row)
    print(table(rows))


def describe(bench: Bench) -> str:
    """Say on what is measured."""
    return (
        f"{len(bench.texts):,} texts, {bench.megabytes:.1f} MB; {len(bench.definition['model']['vocab']):,} ids; "
        f"{bench.rounds} rounds; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


def python_source() -> Iterator[str]:
    """Give the Python files of this interpreter and its packages, shuffled."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")}
    files = sorted({file for root in roots for file in Path(root).rglob("*.py")})
    Random(0).shuffle(files)
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def read_texts(paths: list[Path], key: str) -> Iterator[str]:
    """Give the texts of JSON-lines files."""
    check_inputs(paths)
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)[key]
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{path}:{number} holds no text under {key!r}") from None


def shorten(texts: list[str], megabytes: float) -> list[str]:
    """Keep the first texts, up to a number of megabytes, without those that spell a sentinel.

    Other encoders make the sentinel's id of it, which would hide whether ids are otherwise equal.
    """
    kept: list[str] = []
    left = megabytes * 1e6
    for document in texts:
        if not document or any(token in document for token in STARCODER_SPECIAL_TOKENS):
            continue
        left -= len(document.encode())
        if left < 0 and kept:
            break
        kept.append(document)
    if not kept:
        raise DataError("there is no text to measure with; give --input")
    return kept


if __name__ == "__main__":
    run_tool(main)
