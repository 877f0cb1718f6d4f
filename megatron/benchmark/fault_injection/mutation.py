"""Checkpoints whose files were damaged, and what a run makes of them: each damage must show, or be none.

A run of one process is started on the damaged folder as a user would, with all of pretrain_gpt.py; where it would begin to
train, what it loaded is compared bit by bit with the checkpoint as it was.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron.benchmark.fault_injection.case import CASES, SAVE_INTERVAL, Case
from megatron.benchmark.fault_injection.life import EXIT_USER_ERROR, SCRIPT, Stage, read_journal
from megatron.benchmark.fault_injection.nursery import Brood
from megatron.benchmark.fault_injection.victim import Rank
from megatron.benchmark.output import markdown
from megatron.checkpoint.layout import TRACKER, checkpoint_folder, rank_file

Kind = Literal[
    "cut",
    "bit flipped",
    "zeroed",
    "grown",
    "removed",
    "doubled",
    "of the other rank",
    "of another checkpoint",
]
Outcome = Literal[
    "another taken", "harmless", "as the tracker says", "REFUSED", "SILENT", "CRASHED", "HUNG"
]
# REFUSED: with an error of the user, though there is an older checkpoint that is whole.
WRONG: tuple[Outcome, ...] = ("REFUSED", "SILENT", "CRASHED", "HUNG")
ITERATIONS = (6, 8, 10)  # of the folder; the last is the one that is damaged
WRITERS = CASES["DP 2, sharded optimizer"]  # so that there are files of two ranks
READER = Case("one process", 1, "--use-distributed-optimizer --num-workers 0")
ZEROED_BYTES = 512
AT_ONCE = 4
LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    kind: Kind
    file: str  # in the folder of the checkpoint, or the tracker
    place: int = 0  # the byte it begins at, or the length that is left
    bit: int = 0

    def __str__(self) -> str:
        return f"{self.file} {self.kind}, {self.place}.{self.bit}"


@dataclass
class Result:
    """What a run made of a mutation."""

    mutation: Mutation
    outcome: Outcome
    folder: str
    detail: str = ""


def all_cuts(folder: Path) -> Iterator[Mutation]:
    """Every file cut at the places where programs err, removed, doubled, grown, exchanged."""
    for path in _files(folder):
        size, name = path.stat().st_size, path.name
        for length in sorted({0, 1, size // 2, size - 1}):
            yield Mutation("cut", name, length)
        yield from (Mutation("removed", name), Mutation("doubled", name))
        yield from (Mutation("grown", name, 1), Mutation("grown", name, ZEROED_BYTES))
        if name != TRACKER:
            yield Mutation("of another checkpoint", name)
    yield Mutation("of the other rank", rank_file(0))


def draw_mutations(folder: Path, seed: str) -> Iterator[Mutation]:
    """Draw without end: a flipped bit, or a block of zeros, at any byte of any file, small files as often as large."""
    draw = random.Random(seed)
    sizes = {path.name: path.stat().st_size for path in _files(folder)}
    while True:
        name = draw.choice(sorted(sizes))
        kind: Kind = draw.choices(("bit flipped", "zeroed", "cut"), (6, 2, 1))[0]
        yield Mutation(kind, name, draw.randrange(sizes[name]), draw.randrange(8))


def apply(mutation: Mutation, root: Path) -> bool:
    """Change the newest checkpoint of a copied run. False if that left every byte as it was."""
    folder = checkpoint_folder(root, ITERATIONS[-1])
    path = (root if mutation.file == TRACKER else folder) / mutation.file
    before = path.read_bytes()
    after = bytearray(before)
    match mutation.kind:
        case "cut":
            del after[mutation.place :]
        case "bit flipped":
            after[mutation.place] ^= 1 << mutation.bit
        case "zeroed":
            end = min(len(after), mutation.place + ZEROED_BYTES)
            after[mutation.place : end] = bytes(end - mutation.place)
        case "grown":
            after += bytes(mutation.place)
        case "doubled":
            after += before
        case "removed":
            path.unlink()
            return True
        case "of another checkpoint":
            after = bytearray((checkpoint_folder(root, ITERATIONS[-2]) / path.name).read_bytes())
        case "of the other rank":
            other = folder / rank_file(1)
            after = bytearray(other.read_bytes())
            other.write_bytes(before)
    path.write_bytes(after)
    return bytes(after) != before


class Damage:
    """Makes the checkpoints once, then damages copies of them and starts runs on these."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        reference = stage.reference(WRITERS)
        self.pristine = stage.folder / "pristine"
        for iteration in ITERATIONS:
            folder = checkpoint_folder(reference.save, iteration)
            shutil.copytree(folder, self.pristine / folder.name)
        (self.pristine / TRACKER).write_text(f"{ITERATIONS[-1]}\n")
        self.target = checkpoint_folder(self.pristine, ITERATIONS[-1])
        self._num_tried = 0

    def test(self, mutations: Sequence[Mutation]) -> list[Result]:
        """Start a run on each of a few mutations, all at once. What went right leaves no folder."""
        roots, changed = [], []
        for mutation in mutations:
            root = self._stage.folder / f"damage-{self._num_tried}" / "run"
            shutil.copytree(self.pristine, root)
            changed.append(apply(mutation, root))
            roots.append(root)
            self._num_tried += 1
        ranks = [self._rank(root) for root in roots]
        ends = self._stage.nursery.run(
            Brood(
                "megatron.benchmark.fault_injection.victim:be_rank",
                [dataclasses.asdict(rank) for rank in ranks],
                [str(root.parent / "output.txt") for root in roots],
                LIMIT_SECONDS,
            )
        )
        results = []
        for number, (mutation, root) in enumerate(zip(mutations, roots, strict=True)):
            code = None if number in ends.hung else ends.codes[number]
            outcome, detail = _outcome(mutation, root, code)
            if not changed[number] and outcome not in WRONG:
                outcome = "harmless"
            results.append(Result(mutation, outcome, str(root.parent), detail))
            if outcome not in WRONG:
                shutil.rmtree(root.parent)
        return results

    def _rank(self, root: Path) -> Rank:
        flags = READER.command(self._stage.data_flags, root, SAVE_INTERVAL)
        journal = str(root.parent / "journal.jsonl")
        return Rank(
            *(0, 1, str(SCRIPT), flags, str(root), journal, "", None), pristine=str(self.pristine)
        )


def _outcome(mutation: Mutation, root: Path, code: int | None) -> tuple[Outcome, str]:
    """Say what a run made of a mutation, given its exit code (None: it hung)."""
    output = (root.parent / "output.txt").read_text()
    last = output.strip().rpartition("\n")[2]
    if code is None:
        return "HUNG", last
    if code == EXIT_USER_ERROR and "Traceback" not in output:
        return "REFUSED", last
    loaded = next(
        (n for n in read_journal(root.parent / "journal.jsonl") if n["kind"] == "loaded"), None
    )
    if code != 0 or loaded is None:
        return "CRASHED", last
    if loaded["difference"] is not None:
        return "SILENT", loaded["difference"]
    if loaded["iteration"] == ITERATIONS[-1]:
        return "harmless", ""
    if (
        mutation.file == TRACKER
        and (root / TRACKER).read_bytes().strip() == b"%d" % loaded["iteration"]
    ):
        return "as the tracker says", ""
    return "another taken", ""


def _files(folder: Path) -> list[Path]:
    """Give the files of a checkpoint, and the tracker above it."""
    return [*sorted(folder.iterdir()), folder.parent / TRACKER]


def to_markdown(results: Sequence[Result]) -> str:
    """Count outcomes by kind."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        file = "tracker" if result.mutation.file == TRACKER else result.mutation.file
        for row in (file, result.mutation.kind, "all"):
            counts.setdefault(row, Counter())[result.outcome] += 1
    columns = [*Outcome.__args__]  # type: ignore[attr-defined]
    names = [*sorted(row for row in counts if row != "all"), "all"]
    lines = [
        [row, f"{counts[row].total():,}", *(f"{counts[row][name]:,}" for name in columns)]
        for row in names
    ]
    return markdown(("file, or damage", "mutations", *columns), lines)
