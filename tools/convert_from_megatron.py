#!/usr/bin/env python3
"""Make a checkpoint of one that BigCode's Megatron-LM wrote (mp_rank_* folders), of any TP and PP."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron.cli import add_section, make_parser, parse_known, run_tool, section_from
from megatron.convert.imported import convert
from megatron.convert.megatron_import import open_megatron
from megatron.convert.output_folder import add_folders
from megatron.options import TokenizerConfig

EXAMPLES = """\
  python tools/convert_from_megatron.py --load starcoder-megatron --save runs/starcoder --tokenizer-file tokenizer.json
  python tools/convert_from_megatron.py --load ckpt --iteration 240000 --save runs/240k

weights are read, optimizer state is not; nothing in the files is run. Needs no GPU and no torchrun; memory stays
below 1 GB for a model of any size"""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    options = section_from(args, TokenizerConfig)
    convert(
        lambda: open_megatron(
            args.load,
            args.iteration,
            tokenizer=options if options != TokenizerConfig() else None,
            accepts_exact_gelu=args.gelu_as_tanh,
        ),
        args.save,
        overwrite=args.overwrite,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__ or "", EXAMPLES)
    add_folders(
        parser,
        load="folder of the run, or one of its iter_ folders (or release)",
        replaces="import",
    )
    parser.add_argument(
        "--iteration", type=int, help="of the run's checkpoints (default: the latest)"
    )
    parser.add_argument(
        "--gelu-as-tanh",
        action="store_true",
        help="take a model that was trained with exact GELU (--no-bias-gelu-fusion) as the tanh formula",
    )
    add_section(parser, TokenizerConfig, title="tokenizer")
    return parse_known(parser, argv)


if __name__ == "__main__":
    run_tool(main)
