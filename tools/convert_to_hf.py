#!/usr/bin/env python3
"""Write a checkpoint of any layout as a Hugging Face folder (GPTBigCode or Starcoder2) with its tokenizer."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import torch

from megatron.cli import make_parser, parse_known, run_tool
from megatron.convert.hf_export import architecture_of, export_hf, is_export
from megatron.convert.hf_verification import verify_hf
from megatron.convert.output_folder import add_folders, check_target, new_folder
from megatron.convert.source import RunSource
from megatron.errors import ConfigError
from megatron.progress import progress_bar

EXAMPLES = """\
  python tools/convert_to_hf.py --load runs/py --save export/py --verify
  python tools/convert_to_hf.py --load runs/15b --iteration 240000 --save export/15b --dtype bf16

needs no GPU and no torchrun; memory stays below 1 GB for a model of any size (--verify: the model in fp32)"""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_folders(
        parser,
        load="a run's --save, or one iter_ folder",
        replaces="export",
    )
    parser.add_argument(
        "--iteration", type=int, help="of the run's checkpoints (default: the latest)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of the weights written (default: fp32)"
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="start a new file beyond this, as 500MB (default: 5GB)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the hashes of the checkpoint's files first, and compare logits with transformers before publishing",
    )
    args = parse_known(parser, argv)
    dtype, max_shard_bytes = DTYPES[args.dtype], parse_size(args.max_shard_size)
    may_replace = is_export if args.overwrite else None
    check_target(args.save, may_replace)
    source = RunSource.open(args.load, args.iteration)
    if args.verify:
        size = source.reader.num_bytes
        with progress_bar(size, "hashes") as bar:
            source.reader.verify(bar.update)
    model = source.config.model
    total = sum(tensor.num_values for tensor in architecture_of(model).map(model))

    start = time.perf_counter()
    try:
        with new_folder(args.save, may_replace) as folder:
            with progress_bar(total * dtype.itemsize, "convert") as bar:
                summary = export_hf(
                    source,
                    folder,
                    dtype=dtype,
                    max_shard_bytes=max_shard_bytes,
                    progress=bar.update,
                )
            seconds = time.perf_counter() - start
            verified = ""
            if args.verify:
                difference = verify_hf(source, folder, dtype)
                verified = f", logits equal transformers' to {difference:.0e}"
    except OSError as error:
        raise ConfigError(
            f"{error.filename or args.save}: {error.strerror}; nothing was written"
        ) from error
    if source.tokenizer is None:
        print(
            f"no tokenizer in {source.tokenizer_folder}: the export has none, its end-of-text id is 0"
        )
    print(
        f"{args.save}: iteration {source.reader.iteration:,}, {summary.num_parameters:,} parameters, "
        f"{summary.num_bytes / 1e9:.2f} GB {args.dtype} in {summary.num_weight_files} files, "
        f"{summary.num_bytes / 1e6 / seconds:,.0f} MB/s{verified}"
    )


def parse_size(text: str) -> int:
    """Read 500MB, 5GB or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ConfigError(f"--max-shard-size {text}: give a size such as 500MB or 5GB")
    return size


if __name__ == "__main__":
    run_tool(main)
