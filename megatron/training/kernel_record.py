"""By which kernels, on what, a run was computed so far, and is now: kept with a checkpoint, and told where they differ.

Kernels may change at every start, for they change no number but by rounding. Whoever counts on a resumed run's bits
has to hear of it: what `auto` takes depends on the machine and on what is compiled there, and each kind of processor
and release of torch has loops of its own under one name.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from megatron.errors import first_of
from megatron.kernels.choice import Choice
from megatron.kernels.processor import processor_name
from megatron.logging import get_logger
from megatron.parallel.agreement import gather_everywhere
from megatron.training.start import Start

logger = get_logger(__name__)

KERNELS = "kernels"  # the key in state.json
NUM_SHOWN = 8  # hosts that are named


def record_of(choices: Iterable[Choice], device: torch.device) -> dict[str, str]:
    """Give what a checkpoint keeps: {operation: implementation}, and the processor and the torch that run them."""
    names = {choice.operation: choice.name for choice in choices}
    return names | {"processor": processor_name(device), "torch": str(torch.__version__)}


def tell_changes(start: Start, ours: Mapping[str, str]) -> None:
    """Warn if a run goes on by other kernels than the checkpoint's, or by not the same ones in every process.

    ours: as `record_of` gives it. Collective over the world.
    """
    if start.takes_progress:
        changes = describe_changes(start.state, ours)
        if changes:
            logger.warning(
                f"{start.folder} was computed by other kernels: {changes}. The run goes on alike but for rounding, not "
                f"with the same bits; --kernels and --attention-backend choose operations"
            )
    found = gather_everywhere((socket.gethostname(), dict(ours)))
    differences = describe_differences(found)
    if differences:
        logger.warning(
            f"the processes compute by different kernels: {differences}. Weights that several of them hold may drift "
            f"apart; take nodes of one kind, run make env on every one, or choose with --kernels"
        )


def describe_changes(state: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    """Say what of a state.json's record is otherwise now; empty if nothing, or if it is older than that."""
    before = state.get(KERNELS, {})
    return ", ".join(
        f"{what} was {before[what]}, is {name}"
        for what, name in ours.items()
        if before.get(what, name) != name
    )


def describe_differences(found: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """Say what hosts compute otherwise than others, from each process's host and record; empty if nothing."""
    hosts: dict[str, dict[str, set[str]]] = {}
    for host, record in found:
        for what, name in record.items():
            hosts.setdefault(what, {}).setdefault(name, set()).add(host)
    return ", ".join(
        f"{what} is "
        + " and ".join(f"{name} on {first_of(sorted(on), NUM_SHOWN)}" for name, on in by.items())
        for what, by in hosts.items()
        if len(by) > 1
    )
