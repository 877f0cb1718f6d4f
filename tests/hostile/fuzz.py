"""`python -m tests.hostile.fuzz --mutations 5000 --seed 1`: attack every reader, and print what became of it.

A mutation is known by its seed: `--only SEED` runs it again and keeps its files.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.base import make_base, preprocess_base
from tests.hostile.commands import Command, call_tool, load_tool
from tests.hostile.guard import Outcome, run_guarded
from tests.hostile.subjects import SUBJECTS, Subject

LOADED = (
    "pretrain_gpt",
    "plan",
    "verify",
    "merge_datasets",
    "preprocess_data",
    "train_tokenizer",
    "convert_from_hf",
    "convert_from_megatron",
    "plot_loss",
)


@dataclass(frozen=True)
class Result:
    """What one command made of one mutation."""

    subject: str
    number: int
    command: Command
    outcome: Outcome


def prepare(folder: Path) -> Path:
    """Write the base files and import what children would import; give the base."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    base = folder / "base"
    base.mkdir()
    make_base(base)
    preprocess_base(base)
    import megatron.planning.layouts
    import megatron.planning.report  # noqa: F401

    for name in LOADED:
        load_tool(name)
    return base


def attack(base: Path, work: Path, subject: Subject, number: int) -> Iterator[Result]:
    """Make one mutation and run the commands that read it."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)
    draw = random.Random(f"{subject.name} {number}")
    for command in subject.attack(draw, work):
        outcome = run_guarded(
            call_tool(command.tool), list(command.argv), command.check, folder=work
        )
        yield Result(subject.name, number, command, outcome)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the first number; others follow")
    parser.add_argument("--subject", help="only subjects whose name holds this")
    parser.add_argument("--keep", type=Path, help="keep the files of the last mutation here")
    args = parser.parse_args()
    chosen = [one for one in SUBJECTS if args.subject is None or args.subject in one.name]
    counts: dict[str, Counter[str]] = {subject.name: Counter() for subject in chosen}
    seen: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = prepare(Path(folder))
        work = args.keep or Path(folder) / "work"
        for turn in range(args.mutations):
            subject = chosen[turn % len(chosen)]
            results = list(attack(base, work, subject, args.seed + turn // len(chosen)))
            kinds = {result.outcome.kind for result in results}
            counts[subject.name]["mutations"] += 1
            counts[subject.name]["commands"] += len(results)
            counts[subject.name][
                next(kind for kind in ("finding", "refused", "accepted") if kind in kinds)
            ] += 1
            for result in results:
                if not result.outcome.is_finding:
                    continue
                last = result.outcome.text.strip().splitlines()[-1][:200]
                seen[last] += 1
                if seen[last] <= 2:
                    print(
                        f"== {result.subject} {result.number}: {result.command.tool} {result.command.argv!r}"[
                            :1500
                        ]
                    )
                    print(result.outcome.text[-1800:], flush=True)
    for name, row in counts.items():
        print(
            f"{name:36} "
            + "  ".join(
                f"{kind} {row[kind]:5}"
                for kind in ("mutations", "commands", "refused", "accepted", "finding")
            )
        )
    total = sum((row for row in counts.values()), Counter[str]())
    print(
        f"{'all':36} " + "  ".join(f"{kind} {number:5}" for kind, number in sorted(total.items()))
    )
    print(f"{time.monotonic() - started:.0f} s")
    for text, number in seen.most_common():
        print(f"{number:5} {text}")
    return 1 if total["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
