"""Build a small corpus from the source code that is installed on this machine. See --help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from megatron import cli
from megatron.data.preprocessing.machine_source import (
    SUFFIXES,
    collect,
    machine_roots,
    refuse_language,
    write,
)
from megatron.errors import ConfigError, DataError

EXAMPLES = """\
  what this machine has, up to 16 MB a language:
    python tools/collect_source.py --output runs/corpus
  your own code, Python and C++ only:
    python tools/collect_source.py --output runs/corpus --root ~/src --languages python cpp

a small folder; nothing is too little:
    python tools/collect_source.py --output runs/corpus --root ~/src/one --min-mb 0

writes OUTPUT/{language}_train.jsonl and OUTPUT/{language}_valid.jsonl, one file of source a line:
{"text", "path", "language"}"""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Collect, write, and say what was found."""
    parser = cli.make_parser("Build a small corpus of the source code on this machine.", EXAMPLES)
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--root",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="look here instead of this machine's libraries",
    )
    parser.add_argument(
        "--languages",
        nargs="+",
        choices=sorted(SUFFIXES),
        metavar="NAME",
        help=f"only these (default: all that are found): {', '.join(sorted(SUFFIXES))}",
    )
    parser.add_argument(
        "--max-mb", type=float, default=16.0, help="most of one language (default: 16)"
    )
    parser.add_argument(
        "--min-mb",
        type=float,
        default=0.1,
        help="leave out a language with less (default: 0.1); an error if --languages names it",
    )
    parser.add_argument(
        "--valid-fraction",
        type=float,
        default=0.04,
        help="part of the files held out (default: 0.04)",
    )
    args = cli.parse_known(parser, argv)
    if not 0.0 < args.valid_fraction < 1.0:
        raise ConfigError(f"--valid-fraction is {args.valid_fraction}; allowed is between 0 and 1")
    if not 0.0 <= args.min_mb <= args.max_mb or not 0.0 < args.max_mb < math.inf:
        raise ConfigError(
            f"--min-mb is {args.min_mb:g} and --max-mb {args.max_mb:g}; --max-mb is a size above 0 and --min-mb one "
            "from 0 up to it"
        )
    if args.output.exists():
        raise DataError(f"--output {args.output} exists already; remove it or name another folder")
    for root in args.root or ():
        if not root.is_dir():
            raise DataError(f"--root {root} is not a folder")

    kept, dropped = collect(
        args.root or machine_roots(),
        args.languages or sorted(SUFFIXES),
        max_bytes=int(args.max_mb * 1e6),
        valid_fraction=args.valid_fraction,
    )
    small = {
        name: reason
        for name, language in kept.items()
        if (reason := refuse_language(language, int(args.min_mb * 1e6))) is not None
    }
    # Who asks for a language hears of it; of the others only what is there.
    found = {name: small[name] for name in small if args.languages or kept[name].num_bytes}
    files = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
    if len(small) == len(kept) or (args.languages and small):
        few = "; ".join(f"{name}: {reason}" for name, reason in found.items())
        raise DataError(
            f"too little source ({few or 'none at all'}; files left out: {files or 'none'}); name a folder with more "
            "in --root, lower --min-mb, or choose other --languages"
        )
    kept = {name: language for name, language in kept.items() if name not in small}
    write(kept, args.output)

    for name, language in kept.items():
        print(
            f"{name:<11}{len(language.train):>7,} files to train on, {len(language.valid):>5,} held out, "
            f"{language.num_bytes / 1e6:6.1f} MB"
        )
    for name, reason in found.items():
        print(f"{name:<11}left out: {reason}")
    total = sum(language.num_bytes for language in kept.values())
    print(f"wrote {total / 1e6:.1f} MB to {args.output}; left out: {files or 'nothing'}")
    return None


if __name__ == "__main__":
    cli.run_tool(main)
