#!/usr/bin/env python3
"""Join datasets (.bin, .idx) into one, in the order given or shuffled, without decoding them."""

from __future__ import annotations

from pathlib import Path

import megatron.logging
from megatron.cli import end_on_sigterm, make_parser, parse_known, run_tool
from megatron.data.preprocessing.merge import list_prefixes, merge, merge_shuffled, open_sources
from megatron.progress import progress_bar

EXAMPLES = """\
  python tools/merge_datasets.py --input shards/ --output-prefix data/py_text_document
  python tools/merge_datasets.py --input a_text_document b_text_document --output-prefix ab_text_document --shuffle"""


def main() -> None:
    parser = make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="DIR_OR_PREFIX",
        help="prefixes, or folders, of which every dataset is taken by name (2 before 10); of a dataset written with "
        "--shard, all shards by their numbers",
    )
    parser.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX")
    parser.add_argument(
        "--shuffle",
        action="store_true",
        help="write the documents in a random order; needs twice the space while it runs",
    )
    parser.add_argument("--seed", type=int, default=1234, help="of --shuffle (default: 1234)")
    parser.add_argument(
        "--drop-provenance", action="store_true", help="leave out where documents come from"
    )
    args = parse_known(parser, None)
    megatron.logging.configure()
    end_on_sigterm("nothing of the output was kept; run it again")

    prefixes = list_prefixes(args.input, args.output_prefix)
    sources = open_sources(prefixes, drop_provenance=args.drop_provenance)
    total = sum(source.dataset.tokens.nbytes for source in sources) * (1 + args.shuffle)
    with progress_bar(total, "merge") as bar:
        if args.shuffle:
            merged = merge_shuffled(sources, args.output_prefix, args.seed, on_bytes=bar.update)
        else:
            merged = merge(sources, args.output_prefix, on_bytes=bar.update)
    print(
        f"{args.output_prefix}: {len(sources)} token files, {merged.num_documents:,} documents, "
        f"{merged.num_tokens:,} tokens"
    )


if __name__ == "__main__":
    run_tool(main)
