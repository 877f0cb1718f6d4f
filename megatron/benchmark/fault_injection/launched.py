"""A run under the launcher, whose processes die again and again: it starts them anew by itself until it is complete."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from megatron.benchmark.fault_injection import judge
from megatron.benchmark.fault_injection.case import NUM_STEPS, SAVE_INTERVAL, Case
from megatron.benchmark.fault_injection.fault import Fault
from megatron.benchmark.fault_injection.life import (
    SCRIPT,
    TIMEOUT_MINUTES,
    Attempt,
    Life,
    Stage,
    read_journal,
)
from megatron.benchmark.fault_injection.nursery import Brood

LAUNCHER = SCRIPT.with_name("launch.py")
SECONDS_A_START = 60.0


def live_launched(
    stage: Stage, case: Case, name: str, faults: Sequence[tuple[int, Fault]], *, seed: str = ""
) -> Life:
    """Launch a run once, with a (rank, fault) for each of its starts, and look at it when the launcher has ended."""
    reference = stage.reference(case)
    folder = stage.folder / name
    folder.mkdir()
    save, plan, output = folder / "run", folder / "plan.json", folder / "output.txt"
    lines = [[rank, fault.moment, fault.occurrence, fault.action] for rank, fault in faults]
    plan.write_text(json.dumps({"root": str(save), "folder": str(folder), "faults": lines}))
    command = [
        *(sys.executable, str(LAUNCHER), "--standalone", "--nproc-per-node", str(case.world_size)),
        *("--max-restarts", str(len(faults) + 2)),
        *("-m", "megatron.benchmark.fault_injection.victim", str(plan), str(SCRIPT)),
        *case.command(stage.data_flags, save, SAVE_INTERVAL),
        *("--distributed-timeout-minutes", str(TIMEOUT_MINUTES)),
    ]
    brood = Brood(
        "megatron.benchmark.fault_injection.launched:be_launcher",
        [{"command": command}],
        [str(output)],
        SECONDS_A_START * (len(faults) + 1),
    )
    ends = stage.nursery.run(brood)
    life = Life(case.name, seed, str(save), is_launched=True)
    if ends.hung or ends.orphans or ends.codes != [0]:
        life.problems.append(
            f"the launcher ended with {ends.codes}, hung: {ends.hung}, left {ends.orphans}"
        )
    journals = [read_journal(folder / f"journal-{n}.jsonl") for n in range(case.world_size)]
    life.attempts = _attempts(journals, faults)
    life.problems += judge.check_checkpoints(save, reference, set())
    if not life.problems:
        life.problems += judge.check_complete(save, reference)
    return life


def be_launcher(values: dict[str, Any]) -> None:
    """Become the launcher."""
    os.chdir(LAUNCHER.parents[1])
    os.execv(values["command"][0], values["command"])


def _attempts(
    journals: list[list[dict[str, Any]]], faults: Sequence[tuple[int, Fault]]
) -> list[Attempt]:
    """Give an attempt for each fault that happened, and one for the start after the last.

    first_step_seconds: here from the fault to the end of the first step after it.
    """
    deaths = sorted(n["time"] for notes in journals for n in notes if n["kind"] == "fired")
    steps = sorted(note["time"] for note in journals[0] if note["kind"] == "stepped")
    attempts = [
        Attempt(rank, fault, has_fired=True)
        for (rank, fault), _ in zip(faults, deaths, strict=False)
    ]
    attempts.append(Attempt(0, None, committed=(0, NUM_STEPS)))
    for death, following, attempt in zip(
        deaths, [*deaths[1:], float("inf")], attempts[1:], strict=True
    ):
        first = next((time for time in steps if time > death), None)
        if first is not None and first < following:
            attempt.first_step_seconds = first - death
    return attempts
