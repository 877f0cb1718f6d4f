"""The life of a run that dies again and again: started with the same command until it is complete.

After every death its folder is looked at, after the last one all of it is compared with a run that nothing happened to.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import megatron
from megatron.benchmark.fault_injection import judge
from megatron.benchmark.fault_injection.case import NUM_STEPS, SAVE_INTERVAL, Case
from megatron.benchmark.fault_injection.fault import DEADLY, FAILING_DISK, Action, Fault
from megatron.benchmark.fault_injection.nursery import Brood, Ends, Nursery
from megatron.benchmark.fault_injection.victim import Rank

SCRIPT = Path(megatron.__file__).parents[1] / "tools/pretrain_gpt.py"
HANG_SECONDS = 120.0
TIMEOUT_MINUTES = 0.5  # of collectives: what peers wait for a process that died before it joined
SHORT_TIMEOUT_MINUTES = 0.15  # the same where one is to hang
EXIT_CODES_OF_STOPPED = (75, 0)  # left when asked; or complete already
EXIT_CODES_OF_ENDED = {-15, 143}  # by SIGTERM, where there was nothing to save
EXIT_USER_ERROR = 2
LONGEST_LIFE = 60  # attempts
# How often an action is drawn, against 1 for others. Peers of a process that hangs wait until collectives time out.
WEIGHTS = {"kill": 6.0, "stop": 0.2}


@dataclass
class Attempt:
    """One start of the command, and what became of it."""

    rank: int
    fault: Fault | None
    has_fired: bool = False
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    continued: int | None = None  # after how many samples the first step began; None: none began
    steps_lost: int = 0  # that had been saved
    first_step_seconds: float | None = (
        None  # from the start of the process to the end of its first step
    )
    committed: tuple[int, int] = (0, 0)  # iterations of the tracker, before and after
    hung: list[int] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Stage:
    """Where lives are played: processes to fork, data to read, a folder for what is written."""

    nursery: Nursery
    data_flags: list[str]
    folder: Path
    _references: dict[str, judge.Reference] = field(default_factory=dict)
    _moments: dict[str, list[Counter[str]]] = field(default_factory=dict)

    def reference(self, case: Case) -> judge.Reference:
        """Give the undisturbed run of a case, made when first asked for. AssertionError if it fails."""
        if case.name not in self._references:
            save = self.folder / f"reference-{len(self._references)}"
            logs = save.with_suffix(".logs")
            keeping_all = dataclasses.replace(case, keep_last=None)
            attempt = self.attempt(keeping_all, save, logs, save_interval=1, records=True)
            assert set(attempt.codes) == {0}, f"the undisturbed run failed: {case.name}, {attempt}"
            self._references[case.name] = judge.Reference(save, NUM_STEPS)
            if case.keep_last is not None:  # deleting has moments, too
                logs = save.with_name(f"{save.name}-kept.logs")
                self.attempt(case, logs.with_suffix(""), logs, save_interval=1, records=True)
            self._moments[case.name] = [
                Counter(note["moment"] for note in notes if note["kind"] == "moment")
                for notes in _journals(logs, case.world_size)
            ]
        return self._references[case.name]

    def moments(self, case: Case) -> list[Counter[str]]:
        """Give how often each rank of a case comes to each of its moments in its undisturbed run."""
        self.reference(case)
        return self._moments[case.name]

    def attempt(
        self,
        case: Case,
        save: Path,
        logs: Path,
        *,
        rank: int = 0,
        fault: Fault | None = None,
        save_interval: int = SAVE_INTERVAL,
        records: bool = False,
    ) -> Attempt:
        """Start the command once and see how it ends. The folder logs must not exist."""
        logs.mkdir(parents=True)
        before = judge.committed(save)
        flags = case.command(self.data_flags, save, save_interval)
        if case.world_size > 1:
            minutes = SHORT_TIMEOUT_MINUTES if fault and fault.action == "stop" else TIMEOUT_MINUTES
            flags += ["--distributed-timeout-minutes", str(minutes)]
        ranks = [
            Rank(
                number,
                case.world_size,
                str(SCRIPT),
                flags,
                str(save),
                str(logs / f"journal-{number}.jsonl"),
                str(logs / "rendezvous"),
                fault if number == rank else None,
                records,
            )
            for number in range(case.world_size)
        ]
        ends = self.nursery.run(
            Brood(
                "megatron.benchmark.fault_injection.victim:be_rank",
                [dataclasses.asdict(one) for one in ranks],
                [str(logs / f"output-{number}.txt") for number in range(case.world_size)],
                HANG_SECONDS,
            )
        )
        return _attempt_from(ends, rank, fault, _journals(logs, case.world_size), before)


def _attempt_from(
    ends: Ends, rank: int, fault: Fault | None, journals: list[list[dict]], before: int
) -> Attempt:
    attempt = Attempt(rank, fault, codes=ends.codes, seconds=max(ends.seconds))
    attempt.hung, attempt.orphans, attempt.committed = ends.hung, ends.orphans, (before, before)
    attempt.has_fired = any(note["kind"] == "fired" for note in journals[rank])
    first = journals[0]
    start = next((note["time"] for note in first if note["kind"] == "start"), None)
    begun = next((note for note in first if note["kind"] == "step"), None)
    stepped = next((note["time"] for note in first if note["kind"] == "stepped"), None)
    if begun is not None:
        attempt.continued = begun["consumed_samples"]
    if start is not None and stepped is not None:
        attempt.first_step_seconds = stepped - start
    return attempt


def _journals(logs: Path, world_size: int) -> list[list[dict]]:
    return [read_journal(logs / f"journal-{number}.jsonl") for number in range(world_size)]


def read_journal(path: Path) -> list[dict]:
    """Read what a process noted; the last line of a killed one may be torn."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@dataclass
class Life:
    """A run of a case and its attempts."""

    case: str
    seed: str
    save: str
    attempts: list[Attempt] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of the complete run
    is_launched: bool = False  # by the launcher, which started it again by itself

    @property
    def num_faults(self) -> int:
        return sum(attempt.has_fired for attempt in self.attempts)

    @property
    def is_right(self) -> bool:
        return not self.problems and not any(attempt.problems for attempt in self.attempts)


def live(
    stage: Stage, case: Case, name: str, faults: Iterable[tuple[int, Fault]], *, seed: str = ""
) -> Life:
    """Start a run, with one (rank, fault) after another, until it is complete; look at it after each, and at the end.

    Where faults end, nothing disturbs it any more.
    """
    reference = stage.reference(case)
    folder = stage.folder / name
    save = folder / "run"
    life = Life(case.name, seed, str(save))
    known: set[int] = set()
    coming = itertools.chain(itertools.islice(faults, LONGEST_LIFE), itertools.repeat((0, None), 2))
    for number, (rank, fault) in enumerate(coming):
        logs = folder / f"start-{number}"
        attempt = stage.attempt(case, save, logs, rank=rank, fault=fault)
        life.attempts.append(attempt)
        _judge_attempt(attempt, save, logs, reference, known)
        if attempt.problems:
            return life  # the folder is evidence: nothing is written over it
        # What a disk that failed at the very end did not delete, the next start does.
        has_leftovers = attempt.has_fired and fault is not None and fault.action in FAILING_DISK
        if set(attempt.codes) == {0} and attempt.committed[1] == NUM_STEPS and not has_leftovers:
            life.problems += judge.check_complete(save, reference)
            return life
        if not attempt.has_fired:
            attempt.problems.append(f"ended with {attempt.codes} though nothing happened to it")
            return life
    life.problems.append("never came to its end")
    return life


def draw_faults(
    moments: list[Counter[str]], seed: str, actions: Sequence[Action] | None = None
) -> Iterator[tuple[int, Fault]]:
    """Draw (rank, fault) without end: moments evenly among their kinds, soon after the next save at most.

    moments: of each rank, `Stage.moments`. actions: those that are drawn; None: all.
    """
    draw = random.Random(seed)
    while True:
        rank = draw.randrange(len(moments))
        moment = draw.choice(sorted(moments[rank]))
        per_step = moments[rank][moment] / NUM_STEPS
        # The undisturbed run saved after every step.
        per_save = per_step if Fault(moment, 1, "kill").is_on_disk else per_step * SAVE_INTERVAL
        latest = max(1, round(1.3 * per_save))
        possible = possible_actions(moment, len(moments))
        allowed = [one for one in possible if actions is None or one in actions] or ["kill"]
        weights = [WEIGHTS.get(one, 1.0) for one in allowed]
        action: Action = draw.choices(allowed, weights)[0]
        yield rank, Fault(moment, draw.randint(1, latest), action)


def possible_actions(moment: str, world_size: int) -> list[Action]:
    """Give what can happen at a moment and leave a run that is to go on bitwise."""
    word = moment.split()[0]
    actions: list[Action] = ["kill", "terminate"]
    if world_size > 1:
        actions.append("stop")  # alone, nobody would notice
    if Fault(moment, 1, "kill").is_on_disk:
        actions += ["lose data", "lose names", "lose older names"]
        if "metrics" not in moment:  # training goes on without its log, and says so
            actions += ["broken"] if word in ("rename", "remove", "rmdir") else ["full", "broken"]
        if word in ("write", "fsync"):
            actions.append("tear")
        if word == "write":  # with --async-save in a thread
            actions += ["memory", "error"]
    else:
        actions += ["memory", "error"]
    return actions


def _judge_attempt(
    attempt: Attempt, save: Path, logs: Path, reference: judge.Reference, known: set[int]
) -> None:
    """Look at what an attempt left, and say in it what is wrong."""
    problems, before = attempt.problems, attempt.committed[0]
    if attempt.hung:
        problems.append(f"ranks {attempt.hung} hung")
    if attempt.orphans:
        problems.append(f"left processes: {attempt.orphans}")
    problems += judge.check_checkpoints(save, reference, known)
    if not problems:
        attempt.committed = (before, judge.committed(save))
    if attempt.committed[1] < before:
        problems.append(f"the latest checkpoint went from {before} to {attempt.committed[1]}")
    samples = reference.snapshot(before).state["consumed_samples"] if before else 0
    if attempt.continued is not None and attempt.continued < samples:
        attempt.steps_lost = before - attempt.continued * before // samples
        problems.append(f"went on from sample {attempt.continued}; {samples} were saved")
    if attempt.fault is not None and attempt.has_fired:
        problems += _check_end(attempt, attempt.fault, logs)


def _check_end(attempt: Attempt, fault: Fault, logs: Path) -> list[str]:
    """Say what is wrong about how the processes ended, given what happened."""
    codes = attempt.codes
    if fault.action in DEADLY and codes[attempt.rank] != -9:
        return [f"a killed process ended with {codes[attempt.rank]}"]
    is_complete = attempt.committed[1] == NUM_STEPS
    if 0 in codes and not is_complete:
        return [f"exit codes {codes} of a run that is not complete"]
    if fault.action in FAILING_DISK:
        outputs = [path.read_text() for path in sorted(logs.glob("output-*.txt"))]
        if set(codes) not in ({EXIT_USER_ERROR}, {0}):
            return [f"exit codes {codes} after an error of the disk"]
        if any("Traceback" in output for output in outputs):
            return ["a traceback after an error of the disk"]
        if set(codes) == {EXIT_USER_ERROR} and sum(out.count("error: ") for out in outputs) != 1:
            return ["an error of the disk is not told in one line"]
    is_agreed = len(set(codes)) == 1 and codes[0] in EXIT_CODES_OF_STOPPED
    if fault.action == "terminate" and not (is_agreed or EXIT_CODES_OF_ENDED & set(codes)):
        return [f"exit codes {codes} of a run that was asked to stop"]
    return []
