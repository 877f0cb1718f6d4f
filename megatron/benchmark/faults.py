"""`bench.py faults`: kill runs at every moment, start them again, and compare with a run that was left alone.

Only options and the order of things stand here; torch is imported once both are known to be right.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.benchmark.corpus import prepare_corpus
from megatron.benchmark.fault_injection.case import CASES
from megatron.benchmark.output import write_json
from megatron.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from megatron.benchmark.fault_injection.life import Life, Stage
    from megatron.benchmark.fault_injection.mutation import Result

EXAMPLES = """\
  five hundred faults, in runs of six layouts:
    python tools/bench.py faults --kills 500 --seed 1 --out faults.json
  two thousand damaged checkpoints:
    python tools/bench.py faults --kills 0 --mutations 2000
  one of the lives again, with what it wrote:
    python tools/bench.py faults --life 1/17 --folder runs/faults

exit code 1 where a run did not go on bitwise from its last checkpoint; its folder is then kept"""
VOCAB_SIZE = 512
MEGABYTES = 0.3  # of text
FORMAT = 1  # of --out
FAULTS_A_LAUNCH = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py faults`."""
    parser.add_argument("--kills", type=int, default=500, metavar="N", help="faults (default: 500)")
    parser.add_argument(
        "--launched",
        type=int,
        default=0,
        metavar="N",
        help="first, runs under tools/launch.py, which restarts them by itself after each of 4 faults (default: 0)",
    )
    parser.add_argument(
        "--mutations",
        type=int,
        default=0,
        metavar="N",
        help="damaged checkpoints, too: every file cut, removed and exchanged, then flipped bits (default: 0)",
    )
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
    counts = (args.kills, args.launched, args.mutations)
    if min(counts) < 0 or sum(counts) == 0:
        raise ConfigError("--kills, --launched and --mutations must be 0 or more, and one above 0")
    if args.life is not None and not _is_life(args.life):
        raise ConfigError(f"--life {args.life}: give a seed and a number, such as 1/17")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="faults_"))
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--folder {folder} is not empty; give a new one")
    data_flags = prepare_corpus(folder / "data", VOCAB_SIZE, megabytes=MEGABYTES).flags()
    from megatron.benchmark.fault_injection.life import Stage
    from megatron.benchmark.fault_injection.mutation import WRONG
    from megatron.benchmark.fault_injection.nursery import Nursery

    lives: list[Life] = []
    results: list[Result] = []
    try:
        with Nursery() as nursery:
            stage = Stage(nursery, data_flags, folder.absolute())
            if args.life is None:
                _play_launched(args, stage, lives)
            _play(args, stage, lives)
            if args.life is None:
                _damage(args, stage, results)
    finally:  # what an interrupted one has seen so far, too
        _report(args, lives, results)
    failed = [life for life in lives if not life.is_right]
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(lives)} lives went wrong; repeat one with --life {failed[0].seed}; "
            f"what it left is in {Path(failed[0].save).parent}"
        )
    unseen = [result for result in results if result.outcome in WRONG]
    if unseen:
        raise TrainingError(
            f"{len(unseen)} of {len(results)} damaged checkpoints were not dealt with; one is in {unseen[0].folder}"
        )
    if args.folder is None:
        shutil.rmtree(folder)


def _is_life(text: str) -> bool:
    words = text.split("/")
    return len(words) == 2 and all(word.isdigit() for word in words)


def _play(args: argparse.Namespace, stage: Stage, lives: list[Life]) -> None:
    """Play lives, case after case, until there were enough faults, and say how each went. Adds to lives."""
    from megatron.benchmark.fault_injection.life import draw_faults, live

    num_faults = 0
    seeds = [f"{args.seed}/{number}" for number in range(args.kills)]
    if args.life is not None:
        seeds = [args.life]
    for seed in seeds:
        case = list(CASES.values())[int(seed.split("/")[1]) % len(CASES)]
        faults = draw_faults(stage.moments(case), seed)
        life = live(stage, case, f"life-{seed.replace('/', '-')}", faults, seed=seed)
        lives.append(life)
        num_faults += life.num_faults
        _end_life(args, life, num_faults)
        if num_faults >= args.kills:
            break


def _play_launched(args: argparse.Namespace, stage: Stage, lives: list[Life]) -> None:
    """Play lives under the launcher. Adds to lives."""
    from megatron.benchmark.fault_injection.fault import DEADLY
    from megatron.benchmark.fault_injection.launched import live_launched
    from megatron.benchmark.fault_injection.life import draw_faults

    cases = [case for case in CASES.values() if case.world_size > 1]
    actions = (*DEADLY, "error", "memory")
    for number in range(args.launched):
        case, seed = cases[number % len(cases)], f"{args.seed}/launched-{number}"
        drawn = draw_faults(stage.moments(case), seed, actions)
        faults = list(itertools.islice(drawn, FAULTS_A_LAUNCH))
        lives.append(live_launched(stage, case, seed.replace("/", "-"), faults, seed=seed))
        _end_life(args, lives[-1], sum(life.num_faults for life in lives))


def _end_life(args: argparse.Namespace, life: Life, num_faults: int) -> None:
    """Say how a life went, and remove what it wrote if it went well."""
    from megatron.benchmark.fault_injection.report import describe

    outcome = "bitwise" if life.is_right else "WRONG"
    _say(
        f"{num_faults:>6} faults | life {life.seed} | {life.case}: {life.num_faults} faults, {outcome}"
    )
    for attempt in life.attempts:
        if attempt.problems:
            _say(f"    {describe(attempt)}")
    for problem in life.problems:
        _say(f"    {problem}")
    if life.is_right and args.folder is None:
        shutil.rmtree(Path(life.save).parent)


def _damage(args: argparse.Namespace, stage: Stage, results: list[Result]) -> None:
    """Start runs on damaged checkpoints. Adds to results."""
    from megatron.benchmark.fault_injection.mutation import (
        AT_ONCE,
        WRONG,
        Damage,
        all_cuts,
        draw_mutations,
    )

    if args.mutations == 0:
        return
    damage = Damage(stage)
    drawn = draw_mutations(damage.target, str(args.seed))
    mutations = itertools.islice(itertools.chain(all_cuts(damage.target), drawn), args.mutations)
    while some := list(itertools.islice(mutations, AT_ONCE)):
        results += damage.test(some)
        for result in results[-len(some) :]:
            if result.outcome in WRONG:
                _say(f"    {result.mutation}: {result.outcome}, {result.detail}")
        if len(results) % 100 < len(some):
            _say(f"{len(results):>6} damaged checkpoints")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(args: argparse.Namespace, lives: list[Life], results: list[Result]) -> None:
    """Print the tables of what happened, and write all of it to --out."""
    from megatron.benchmark.fault_injection import mutation, report

    if lives:
        num_cases = len({life.case for life in lives})
        print(report.to_markdown(lives))
        print(f"\n{len(lives)} runs of {num_cases} cases\n")
    if results:
        print(mutation.to_markdown(results))
        print(f"\n{len(results)} damaged checkpoints\n")
    content = {
        "format": FORMAT,
        "seed": args.seed,
        "lives": [dataclasses.asdict(life) for life in lives],
        "mutations": [dataclasses.asdict(result) for result in results],
    }
    write_json("--out", args.out, content)
