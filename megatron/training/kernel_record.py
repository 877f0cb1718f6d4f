"""Which kernels computed a run so far, and which do now: kept with a checkpoint, and told where they differ.

Kernels may change at every start, for they change no number but by rounding. Whoever counts on a resumed run's bits
has to hear of it: what `auto` takes depends on the machine, and on what is compiled there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from megatron.checkpoint.agreement import gather_everywhere
from megatron.errors import first_of
from megatron.kernels.choice import Choice
from megatron.logging import get_logger
from megatron.training.start import Start

logger = get_logger(__name__)

KERNELS = "kernels"  # the key in state.json
NUM_SHOWN = 8  # hosts that are named


def names_of(choices: Iterable[Choice]) -> dict[str, str]:
    """Give what a checkpoint keeps: {operation: implementation}."""
    return {choice.operation: choice.name for choice in choices}


def tell_changes(start: Start, ours: Mapping[str, str]) -> None:
    """Warn if a run goes on with other kernels than the checkpoint's, or with not the same ones in every process.

    Collective over the world.
    """
    if start.takes_progress:
        changes = describe_changes(start.state, ours)
        if changes:
            logger.warning(
                f"{start.folder} was computed by other kernels: {changes}. The run goes on alike but for rounding, not "
                f"with the same bits; --kernels and --attention-backend choose the old ones"
            )
    found = gather_everywhere((socket.gethostname(), dict(ours)))
    differences = describe_differences(found)
    if differences:
        logger.warning(
            f"the processes compute by different kernels: {differences}. Weights that several of them hold may drift "
            f"apart; run make env on every node, or choose with --kernels"
        )


def describe_changes(state: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    """Say which operations are computed otherwise than a state.json says; empty if none, or if it is older than that."""
    before = state.get(KERNELS, {})
    return ", ".join(
        f"{operation} by {before[operation]}, now by {name}"
        for operation, name in ours.items()
        if before.get(operation, name) != name
    )


def describe_differences(found: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Say what hosts compute otherwise than others, from each process's host and names; empty if nothing."""
    hosts: dict[str, dict[str, set[str]]] = {}
    for host, names in found:
        for operation, name in names.items():
            hosts.setdefault(operation, {}).setdefault(name, set()).add(host)
    return ", ".join(
        f"{operation} is "
        + " and ".join(f"{name} on {first_of(sorted(on), NUM_SHOWN)}" for name, on in by.items())
        for operation, by in hosts.items()
        if len(by) > 1
    )
