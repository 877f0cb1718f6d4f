#!/usr/bin/env python3
"""Make a checkpoint of a Hugging Face folder (GPTBigCode or Starcoder2), to train on or to export again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron.cli import make_parser, parse_known, run_tool
from megatron.convert.hf_import import open_hf
from megatron.convert.hf_verification import verify_hf
from megatron.convert.imported import convert
from megatron.convert.output_folder import add_folders
from megatron.convert.source import RunSource

EXAMPLES = """\
  python tools/convert_from_hf.py --load starcoderbase-1b --save runs/starcoder-1b --verify
  python tools/convert_from_hf.py --load starcoder --save runs/starcoder-15b --gelu-as-tanh
  python tools/convert_from_hf.py --load starcoder2-3b --save runs/starcoder2-3b

then: python tools/pretrain_gpt.py --load runs/starcoder-1b --finetune --save runs/mine …
needs no GPU and no torchrun; memory stays below 1 GB for a model of any size (--verify: the model in fp32)"""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)

    def verify(root: Path) -> str:
        difference = verify_hf(RunSource.open(root), args.load, torch.float32)
        return f", logits equal transformers' to {difference:.0e}"

    convert(
        lambda: open_hf(args.load, accepts_exact_gelu=args.gelu_as_tanh),
        args.save,
        overwrite=args.overwrite,
        verify=verify if args.verify else None,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_folders(
        parser,
        load="folder with config.json and safetensors, one file or shards with an index",
        replaces="import",
    )
    parser.add_argument(
        "--gelu-as-tanh",
        action="store_true",
        help="take a config.json that says exact GELU as the tanh formula, with which BigCode's models "
        "were trained; logits then differ a little from transformers'",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare logits with transformers before publishing"
    )
    return parse_known(parser, argv)


if __name__ == "__main__":
    run_tool(main)
