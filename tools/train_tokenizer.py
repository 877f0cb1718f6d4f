#!/usr/bin/env python3
"""Train StarCoder's tokenizer (byte-level BPE, single digits, 19 sentinels at ids 0-18) on text files."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from megatron.cli import make_parser, parse_known, run_tool
from megatron.data.preprocessing.document_reader import (
    check_inputs,
    is_plain_text,
    load,
    plan_parts,
    read_chunks,
    read_text,
)
from megatron.data.preprocessing.records import parse_chunk
from megatron.errors import ConfigError, DataError
from megatron.progress import progress_bar
from megatron.tokenizer.json_tokenizer import write_definition
from megatron.tokenizer.train import train_tokenizer

EXAMPLES = """\
  python tools/train_tokenizer.py --input data/*.jsonl.zst --vocab-size 49152 --output tokenizer.json
  python tools/train_tokenizer.py --input code.parquet --json-key content --max-bytes 2000000000 \\
      --vocab-size 49152 --output tokenizer.json"""


def main() -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help=".jsonl, .json (one object a line), .parquet; any other file is taken as text; with .gz or .zst too",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=49152, help="ids (default: 49152)")
    parser.add_argument(
        "--json-key", default="text", help="key or column with text (default: text)"
    )
    parser.add_argument(
        "--max-bytes",
        type=int,
        metavar="N",
        help="stop after this much text, shared among the files by their size (default: all of it)",
    )
    args = parse_known(parser, None)
    if args.max_bytes is not None and args.max_bytes < 1:
        raise ConfigError(f"--max-bytes is {args.max_bytes}; give 1 or more, or leave it out")
    check_inputs(args.input, allow_text=True)
    if args.output.is_dir():
        raise ConfigError(f"--output {args.output} is a folder; name a file, tokenizer.json in it")
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output {args.output}: no folder for it: {error.strerror}") from None

    start = time.monotonic()
    total = sum(path.stat().st_size for path in args.input)
    skipped = [0]
    with progress_bar(total, "read") as bar:
        texts = read_texts(args.input, args.json_key, args.max_bytes, bar, skipped)
        # Minutes in Rust, which Python's handler of Ctrl-C would wait for; nothing is written meanwhile.
        handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
        definition = train_tokenizer(texts, args.vocab_size)
        signal.signal(signal.SIGINT, handler)
    write_definition(args.output, definition)
    found = len(definition["model"]["vocab"])
    if found < args.vocab_size:
        print(
            f"{args.output}: the text gives only {found:,} of {args.vocab_size:,} ids; give more text or a smaller "
            "--vocab-size",
            file=sys.stderr,
        )
    if skipped[0]:
        print(
            f"{skipped[0]:,} records without a string {args.json_key!r}, or longer than --max-bytes, were skipped",
            file=sys.stderr,
        )
    print(
        f"{args.output}: {found:,} ids from {len(args.input)} files in {time.monotonic() - start:.1f} s"
    )


def read_texts(
    paths: Sequence[Path], key: str, max_bytes: int | None, bar: tqdm, skipped: list[int]
) -> Iterator[str]:
    """Give the texts of all files, of each file at most its share of max_bytes; count bad records."""
    total = sum(path.stat().st_size for path in paths)
    for path in paths:
        size = path.stat().st_size
        budget = size * max_bytes // total if max_bytes else None
        done = 0
        for text, num_bytes in _texts_of(path, key, skipped, max_bytes):
            bar.update(num_bytes)
            done += num_bytes
            if budget is not None:
                text = text[:budget]
                budget -= len(text)
            yield text
            if budget is not None and budget <= 0:
                break
        bar.update(size - done)
    bar.set_description("read; learning merges")


def _texts_of(
    path: Path, key: str, skipped: list[int], max_bytes: int | None
) -> Iterator[tuple[str, int]]:
    if is_plain_text(path):
        yield from read_text(path)
        return
    (part,) = plan_parts([path])
    # A record of all that is wanted and more is not held; in JSON a byte of text may take six.
    longest = None if max_bytes is None else 6 * max_bytes
    for chunk in read_chunks(part, [key], max_record_bytes=longest):
        records = parse_chunk(load(chunk), [key])
        skipped[0] += len(records.bad)
        num_bytes = chunk.num_bytes  # told with the first text of each chunk
        for text in records.texts[key]:
            yield text, num_bytes
            num_bytes = 0


if __name__ == "__main__":
    run_tool(main)
