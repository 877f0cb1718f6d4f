"""`bench.py faults`: kill runs at every moment, start them again, and compare with a run that was left alone.

Only options and the order of things stand here; torch is imported once both are known to be right.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.benchmark.corpus import prepare_corpus
from megatron.benchmark.fault_injection.case import CASES
from megatron.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from megatron.benchmark.fault_injection.life import Life

EXAMPLES = """\
  five hundred faults, in runs of six layouts:
    python tools/bench.py faults --kills 500 --seed 1 --out faults.json
  one of its lives again, with what it wrote:
    python tools/bench.py faults --life 1/17 --folder runs/faults

exit code 1 where a run did not go on bitwise from its last checkpoint; its folder is then kept"""
VOCAB_SIZE = 512
MEGABYTES = 0.3  # of text
FORMAT = 1  # of --out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py faults`."""
    parser.add_argument("--kills", type=int, default=500, metavar="N", help="faults (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (default: 1)")
    parser.add_argument("--life", metavar="SEED/NUMBER", help="this life alone")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all that happened, as JSON")
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="a new one, for what runs write (default: none is kept)",
    )


def run(args: argparse.Namespace) -> None:
    """Play lives until there were enough faults, and print what came out. TrainingError on any violation."""
    if args.kills < 1:
        raise ConfigError("--kills must be above 0")
    if args.life is not None and not _is_life(args.life):
        raise ConfigError(f"--life {args.life}: give a seed and a number, such as 1/17")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="faults_"))
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty; give a new one")
    data_flags = prepare_corpus(folder / "data", VOCAB_SIZE, megabytes=MEGABYTES).flags()
    start = time.monotonic()
    lives = _play(args, folder.absolute(), data_flags)
    _report(args, lives, time.monotonic() - start)
    failed = [life for life in lives if not life.is_right]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(lives)} lives went wrong; repeat one with --life {failed[0].seed}; "
            f"what it left is in {Path(failed[0].save).parent}"
        )
    if args.folder is None:
        shutil.rmtree(folder)


def _is_life(text: str) -> bool:
    words = text.split("/")
    return len(words) == 2 and all(word.isdigit() for word in words)


def _play(args: argparse.Namespace, folder: Path, data_flags: list[str]) -> list[Life]:
    """Play lives, case after case, and say how each went."""
    from megatron.benchmark.fault_injection.life import Stage, draw_faults, live
    from megatron.benchmark.fault_injection.nursery import Nursery
    from megatron.benchmark.fault_injection.report import describe

    lives: list[Life] = []
    num_faults = 0
    seeds = [args.life] if args.life else (f"{args.seed}/{number}" for number in range(args.kills))
    with Nursery() as nursery:
        stage = Stage(nursery, data_flags, folder)
        for seed in seeds:
            case = list(CASES.values())[int(seed.split("/")[1]) % len(CASES)]
            faults = draw_faults(stage.moments(case), seed)
            life = live(stage, case, f"life-{seed.replace('/', '-')}", faults, seed=seed)
            lives.append(life)
            fired = sum(attempt.has_fired for attempt in life.attempts)
            num_faults += fired
            outcome = "bitwise" if life.is_right else "WRONG"
            print(
                f"{num_faults:>6} faults | life {seed} | {case.name}: {fired} faults, {outcome}",
                file=sys.stderr,
                flush=True,
            )
            for attempt in life.attempts:
                if attempt.problems:
                    print(f"    {describe(attempt)}", file=sys.stderr)
            for problem in life.problems:
                print(f"    {problem}", file=sys.stderr)
            if life.is_right and args.folder is None:
                shutil.rmtree(Path(life.save).parent)
            if num_faults >= args.kills:
                break
    return lives


def _report(args: argparse.Namespace, lives: list[Life], seconds: float) -> None:
    from megatron.benchmark.fault_injection.report import to_json, to_markdown

    print(to_markdown(lives))
    print(f"\n{len(lives)} runs of {len(CASES)} cases, {seconds:.0f} s")
    if args.out is not None:
        try:
            args.out.write_text(json.dumps({"format": FORMAT, "lives": to_json(lives)}, indent=1))
        except OSError as error:
            raise ConfigError(f"--out {args.out} cannot be written: {error.strerror}") from None
