#!/usr/bin/env python3
"""Join token files (.bin, .idx) into one, in the order given, without decoding them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megatron.cli import make_parser, parse_known, run_tool
from megatron.data.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, bin_path, idx_path
from megatron.errors import DataError

EXAMPLES = """\
  python tools/merge_datasets.py --input shards/ --output-prefix data/py_text_document
  python tools/merge_datasets.py --input a_text_document b_text_document --output-prefix ab_text_document"""


def main() -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR_OR_PREFIX",
        help="folders, of which every .bin/.idx pair is taken by name, or prefixes",
    )
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    args = parse_known(parser, None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    prefixes = list_prefixes(args.input, args.output_prefix)
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    total = sum(dataset.tokens.nbytes for dataset in datasets)
    try:
        with (
            IndexedDatasetBuilder(args.output_prefix, datasets[0].dtype) as builder,
            tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="merge") as bar,
        ):
            for dataset in datasets:
                dataset.verify()
                builder.add_dataset(dataset)
                bar.update(dataset.tokens.nbytes)
            builder.finalize()
    except OSError as error:
        raise DataError(
            f"{error.filename or args.output_prefix}: {error.strerror}; nothing was published"
        ) from error
    print(
        f"{args.output_prefix}: {len(datasets)} token files, {builder.num_documents:,} documents, "
        f"{builder.num_tokens:,} tokens"
    )


def list_prefixes(inputs: Sequence[Path], output: Path) -> list[Path]:
    """Give the prefixes of all inputs in order; the output itself, left by an earlier run, is not one of them."""
    prefixes: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            prefixes.append(path)
            continue
        names = sorted(
            {file.with_suffix("") for file in path.iterdir() if file.suffix in (".bin", ".idx")}
        )
        found = [name for name in names if name.resolve() != output.resolve()]
        if not found:
            raise DataError(f"{path} holds no .bin and .idx files to merge")
        prefixes += found
    if output.resolve() in [prefix.resolve() for prefix in prefixes]:
        raise DataError(f"{output} is both input and output; name another --output-prefix")
    for prefix in prefixes:
        for file in (bin_path(prefix), idx_path(prefix)):
            if not file.exists():
                raise DataError(f"{file} does not exist; {prefix} cannot be merged without it")
    return prefixes


if __name__ == "__main__":
    run_tool(main)
