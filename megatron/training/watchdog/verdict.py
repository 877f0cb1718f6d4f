"""Who is to blame that nothing moves: told from the reports of the processes and from who sends none any more."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from megatron.training.watchdog.board import Report

MOST_NAMED = 4  # ranks in one line

Describe = Callable[[Report], str]


def verdict(
    reports: Sequence[Report], silent: Collection[int], *, names_waiting: bool = True
) -> str:
    """Name the processes that hold up the others, and what the others wait in."""
    alive = [report for report in reports if report.rank not in silent]
    waiting = [report for report in alive if report.collective is not None]
    busy = [report for report in alive if report.collective is None]
    behind = [one for one in alive if one.iteration < max(other.iteration for other in alive)]
    if silent:
        gone = [report for report in reports if report.rank in silent]
        blame = _listed(gone, lambda one: f"{_fate(one)}; last seen in {one.phase}")
    elif busy and waiting:
        blame = _listed(busy, lambda one: f"is in {one.phase}, at {one.place}")
    elif behind:
        blame = _listed(behind, lambda one: f"is behind, in {one.phase}")
    elif busy:
        blame = _listed(busy, lambda one: f"is in {one.phase}, at {one.place}")
    else:
        blame = "no process is behind"
    return blame + (_waits(waiting) if names_waiting else "")


def _waits(waiting: Sequence[Report]) -> str:
    """Say what ranks wait in."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for one in waiting:
        groups[one.phase, str(one.collective), one.place].append(one.rank)
    texts = [
        f"{_ranks(ranks)} in {phase} in {collective}, at {place}"
        for (phase, collective, place), ranks in list(groups.items())[:MOST_NAMED]
    ]
    return "; waiting: " + "; ".join(texts) if texts else ""


def _listed(reports: Sequence[Report], describe: Describe) -> str:
    texts = [f"{one.name} {describe(one)}" for one in reports[:MOST_NAMED]]
    more = len(reports) - MOST_NAMED
    return "; ".join(texts) + (f"; and {more} more ranks" if more > 0 else "")


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:MOST_NAMED]))
    more = len(ranks) - MOST_NAMED
    return f"rank{'s' * (len(ranks) > 1)} {shown}" + (f" and {more} more" if more > 0 else "")


def _fate(report: Report) -> str:
    """Say what can be known of a silent process: much on this host, little on another."""
    if report.host != socket.gethostname():
        return "is silent: stopped, killed, or its node is lost"
    try:
        os.kill(report.pid, 0)
        state = Path(f"/proc/{report.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "is gone"
    fates = {"T": "is stopped (SIGSTOP)", "Z": "is dead", "D": "waits for a disk or driver"}
    return fates.get(state, "is silent: it runs no Python")
