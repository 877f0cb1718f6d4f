#!/usr/bin/env python3
"""Compare a model before and after it was trained on, set by set, and fail if any lost more than it may."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron import cli
from megatron.data.build import FIM_SUFFIX
from megatron.errors import DataError
from megatron.evaluation.forgetting import (
    Limits,
    compare_losses,
    compare_reports,
    is_forgetful,
    to_json,
    to_markdown,
)
from megatron.option_field import require
from megatron.whole_file import replacing

EXAMPLES = """\
  the losses of each validation set at the start and at the end of a run:
    python tools/forgetting.py --metrics runs/python-15b/checkpoints/metrics.jsonl
  those of two runs at their ends, and pass@1 by language; Python's own may do as it likes:
    python tools/forgetting.py --metrics runs/base/metrics.jsonl runs/python/metrics.jsonl \\
      --before base.report.json --after tuned.report.json --waive multipl-e/py --output runs/forgetting

exit codes: 0 nothing is lost beyond the limits, 3 something is, 2 a file is wrong (docs/finetuning.md)"""

EXIT_FORGOTTEN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Read, compare, report."""
    defaults = Limits()
    parser = cli.make_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="metrics.jsonl of one run (its first validation and its last), or of two (the last of each)",
    )
    for name in ("before", "after"):
        parser.add_argument(
            f"--{name}",
            type=Path,
            nargs="+",
            default=[],
            metavar="FILE",
            help=f".report.json of tools/evaluate.py {name} training",
        )
    parser.add_argument(
        "--max-loss-rise",
        type=float,
        default=defaults.loss_rise,
        metavar="PERCENT",
        help=f"of a set's loss before (default: {defaults.loss_rise:g})",
    )
    parser.add_argument(
        "--max-pass-fall",
        type=float,
        default=defaults.pass_fall,
        metavar="POINTS",
        help=f"of pass@1 (default: {defaults.pass_fall:g}); more is allowed where it may be chance",
    )
    parser.add_argument(
        "--waive", nargs="+", default=[], metavar="NAME", help="sets that may lose more"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PREFIX", help="write PREFIX.md and PREFIX.json"
    )
    args = cli.parse_known(parser, argv)
    require(
        bool(args.metrics or args.before or args.after),
        "nothing to compare; give --metrics, or --before and --after",
    )
    require(len(args.metrics) <= 2, "--metrics takes the file of one run, or of two")
    require(bool(args.before) == bool(args.after), "--before and --after go together; give both")
    for flag, limit in (("loss-rise", args.max_loss_rise), ("pass-fall", args.max_pass_fall)):
        require(limit >= 0, f"--max-{flag} is {limit:g}; allowed: from 0")
    limits = Limits(args.max_loss_rise, args.max_pass_fall, frozenset(args.waive))
    changes = compare_losses(args.metrics, limits) if args.metrics else []
    if args.before:
        changes += compare_reports(args.before, args.after, limits)
    names = {change.name for change in changes}
    unknown = {name for name in limits.waived if not names & {name, name + FIM_SUFFIX}}
    require(
        not unknown,
        f"--waive {' '.join(sorted(unknown))} names nothing that is compared: {', '.join(c.name for c in changes)}",
    )
    text = to_markdown(changes, limits)
    print(text)
    if args.output is not None:
        _write(Path(f"{args.output}.md"), text)
        _write(Path(f"{args.output}.json"), json.dumps(to_json(changes, limits), indent=2) + "\n")
    if not is_forgetful(changes):
        return 0
    lost = [change.name for change in changes if change.verdict == "forgotten"]
    print(f"FORGOTTEN: {', '.join(lost)} lost more than the limits allow", file=sys.stderr)
    return EXIT_FORGOTTEN


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise DataError(f"--output {path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    cli.run_tool(main)
