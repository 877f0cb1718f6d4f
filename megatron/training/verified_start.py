"""The checkpoint that a run starts from, once all processes know that it is whole and that they read the same data.

A damaged one of the run's own is set aside and the newest good one before it takes its place.
"""

from __future__ import annotations

import hashlib
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatron.checkpoint.choice import choose_checkpoint, find_flaw, set_aside
from megatron.checkpoint.verify import find_damage
from megatron.errors import CheckpointError, DataError, first_of
from megatron.logging import get_logger
from megatron.parallel.agreement import gather_everywhere, on_first_rank
from megatron.training.contents import BY_CHECKSUM, list_files
from megatron.training.inputs import Inputs
from megatron.training.start import Start, describe_fallback, plan_start

logger = get_logger(__name__)

NUM_SHOWN = 8  # hosts that are named


def verified_start(inputs: Inputs, start: Start, world_size: int) -> Start:
    """Read the files of the start's checkpoint for their hashes; if one is damaged, start from an older one instead.

    Collective over the world: every process gets the same start or raises the same CheckpointError, also if they
    found different checkpoints, as with a folder that is not shared; or DataError, if their files differ.
    """
    check_same_files(start)
    places = set(gather_everywhere(start.place))
    if len(places) > 1:
        raise CheckpointError(
            f"the processes found checkpoints of different iterations ({sorted(places)}, -1 for "
            f"none): --save and --load have to be on storage that all nodes share"
        )
    on_first_rank(partial(_check_unchanged, inputs, start))
    while start.folder is not None:
        damage = find_damage(start.folder)
        if damage is None:
            on_first_rank(partial(_settle, inputs, start))
            break
        before = on_first_rank(partial(_start_before, inputs, start, damage, world_size))
        start = replace(before, contents=start.contents, opt_outs=start.opt_outs)  # what it opened
    return start


def check_same_files(start: Start) -> None:
    """Raise DataError, on every process, unless all opened files that hold the same. Collective over the world."""
    ours = list_files(start.contents, start.opt_outs)
    if len(set(gather_everywhere(hashlib.sha256(repr(ours).encode()).hexdigest()))) == 1:
        return
    found = gather_everywhere((socket.gethostname(), ours))
    on_first_rank(partial(_tell_difference, found))


def _tell_difference(found: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Raise DataError for the first file that is not the same on all hosts. found: by rank, (host, its files)."""
    for name in dict.fromkeys(name for _, files in found for name in files):
        hosts = defaultdict[str, set[str]](set)
        for host, files in found:
            if name in files or not name.endswith(BY_CHECKSUM):
                hosts[files.get(name, "missing")].add(host)
        if len(hosts) == 1:
            continue
        # Those that differ from most come first.
        shown = sorted(hosts.items(), key=lambda item: (len(item[1]), item[0]))
        parts = [f"{content} on {first_of(sorted(names), NUM_SHOWN)}" for content, names in shown]
        raise DataError(
            f"the processes read different files: {name} is {' and '.join(parts)}; every node needs the same files"
        )


def _check_unchanged(inputs: Inputs, start: Start) -> None:
    """Raise CheckpointError if the start was planned while another run still wrote to --save. Rank 0 calls it."""
    save = inputs.config.checkpoint.save
    if save is None:
        return
    now = choose_checkpoint(Path(save), find_flaw)
    planned = start.choice if _is_own(inputs, start) else None
    found = [choice.iteration if choice is not None else None for choice in (planned, now)]
    if found[0] != found[1]:
        raise CheckpointError(
            f"--save {save} changed while this run was starting (latest checkpoint: {found[0]}, then {found[1]}): "
            f"another run wrote to it; start again"
        )


def _start_before(inputs: Inputs, bad: Start, damage: str, world_size: int) -> Start:
    """Plan another start, for the files of this one's checkpoint are damaged. CheckpointError if there is none."""
    known = {one.folder: one.problem for one in bad.choice.broken} if bad.choice else {}
    if bad.folder is not None:
        known[bad.folder] = damage
    if not _is_own(inputs, bad) or inputs.config.checkpoint.no_checkpoint_fallback:
        raise CheckpointError(damage)
    return plan_start(inputs, world_size, lambda folder: known.get(folder) or find_flaw(folder))


def _settle(inputs: Inputs, start: Start) -> None:
    """Say what is unusual about a start, and make the run's folder say it too. Rank 0 calls it."""
    for line in describe_fallback(start):
        logger.warning(line)
    if start.choice is None or start.choice.problem is None or not _is_own(inputs, start):
        return
    for broken, aside in set_aside(start.choice.folder.parent, start.choice):
        logger.warning(f"{broken.folder} is kept as {aside.name} and no longer counts")


def _is_own(inputs: Inputs, start: Start) -> bool:
    """Tell whether a start goes on with the run in --save."""
    save = inputs.config.checkpoint.save
    return save is not None and start.folder is not None and start.folder.parent == Path(save)
