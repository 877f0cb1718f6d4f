"""Steps of a run computed again, from the checkpoint before them, and compared bit by bit with what the run recorded.

A run is a function of its options, its data and its layout. Where a replay gives other numbers than the run did, or than
another replay did, a device has computed wrongly, or a kernel adds in an order of its own. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from megatron.checkpoint.load import load_checkpoint
from megatron.errors import ConfigError, first_of
from megatron.metrics_file import METRICS_FILE, read_losses
from megatron.parallel.agreement import gather_everywhere
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.launch import Launch
from megatron.training.account import Account
from megatron.training.history.replay_plan import ReplayPlan
from megatron.training.pretrain import build_run
from megatron.training.replicas import checksums_of
from megatron.training.run import Run
from megatron.training.train import queue_step

_MAX_NAMED = 3


@dataclass(frozen=True)
class StepNumbers:
    """What a metrics line says of training: nan where a number was not finite."""

    loss: float  # mean since the last line
    gradient_norm: float


@dataclass
class Replayed:
    """What one replay gave on this process."""

    steps: dict[int, StepNumbers] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)  # of this process's tensors at the end
    findings: list[str] = field(default_factory=list)  # of differences, equal on all processes
    notes: list[str] = field(default_factory=list)  # of what was equal


def read_steps(root: Path) -> dict[int, StepNumbers]:
    """Read the training lines of a run's metrics.jsonl by step, of several for a step the last. Raises DataError."""
    path = root / METRICS_FILE
    if not path.is_file():
        return {}
    steps = {}
    for line in read_losses(path):
        if "grad_norm" in line.values:
            norm = line.values["grad_norm"]
            steps[line.iteration] = StepNumbers(
                line.loss, math.nan if norm is None else float(norm)
            )
    return steps


@dataclass(frozen=True)
class Verdict:
    """What all replays came to, the same on every process."""

    lines: list[str]
    is_equal: bool


def replay_times(
    plan: ReplayPlan, launch: Launch, times: int, *, on_step: Callable[[], object]
) -> Verdict:
    """Replay some times and compare with the run, and with each other. Every process of the launch calls it.

    Raises ConfigError if there is nothing to compare with, DataError for a damaged metrics.jsonl.
    """
    recorded = read_steps(plan.root)
    is_recorded = any(plan.first_step <= step <= plan.last_step for step in recorded)
    if times == 1 and not is_recorded and plan.stored is None:
        raise ConfigError(
            f"{plan.root} recorded nothing of steps {plan.first_step} to {plan.last_step}: no line in {METRICS_FILE} "
            f"and no checkpoint after step {plan.last_step}. Give --times 2 to compare replays with each other, or a "
            "step that was logged or saved"
        )
    parallel = plan.inputs.config.parallel
    device = initialize_distributed(parallel, launch)
    context = ParallelContext.create(parallel, launch.world_size, device)
    origin = plan.start.folder or "random weights"
    lines = [f"replayed steps {plan.first_step} to {plan.last_step} from {origin}"]
    replays: list[Replayed] = []
    findings: list[str] = []
    for number in range(1, times + 1):
        one = replay(plan, context, recorded, on_step=on_step)
        name = f"replay {number}: " if times > 1 else ""
        lines += [f"{name}{note}" for note in one.notes]
        findings += [f"{name}{finding}" for finding in one.findings]
        if replays:
            different = compare_replays(number, replays[0], one)
            findings += different
            lines += [] if different else [f"replay {number} gave the same bits as the first"]
        replays = replays or [one]
    dist.barrier()
    dist.destroy_process_group()
    if not findings:
        return Verdict([*lines, "equal"], True)
    return Verdict([*lines, *findings, "different"], False)


def replay(
    plan: ReplayPlan,
    context: ParallelContext,
    recorded: Mapping[int, StepNumbers],
    *,
    on_step: Callable[[], object] = lambda: None,
) -> Replayed:
    """Compute the steps of a plan once and compare them with the run's. Collective over the world."""
    run = build_run(plan.inputs, plan.start, context)
    run.progress.consumed_samples = plan.consumed_samples
    replayed = Replayed()
    account = Account(run.progress, run.spikes, save=str(plan.root))
    while run.progress.iteration < plan.last_step:
        size = run.batches.size(run.progress.consumed_samples)
        step = queue_step(run, size)
        run.progress.advance(size)
        account.add(step, size, size * run.parts.seq_length)
        account.read_all()
        number = run.progress.iteration
        if number == plan.last_step or number in recorded:
            here = StepNumbers(run.progress.interval.mean_loss, account.last.gradient_norm)
            replayed.steps[number] = here
            if number in recorded:
                _compare_numbers(number, here, recorded[number], replayed)
        if number % run.config.logging.log_interval == 0:
            account.begin_interval()
        on_step()
    if plan.stored is not None:
        _compare_tensors(run, plan.stored, replayed)
    replayed.checksums = checksums_of(run.tensors.all())
    run.close()
    return replayed


def compare_replays(number: int, first: Replayed, other: Replayed) -> list[str]:
    """Say where replay `number` differs from the first. Collective over the world."""
    steps = [step for step, here in other.steps.items() if not _is_same(here, first.steps[step])]
    names = _union(
        [name for name, value in other.checksums.items() if value != first.checksums[name]]
    )
    what = [f"the numbers of step {steps[0]}"] if steps else []
    what += [f"{len(names)} tensors at the end: {first_of(names, _MAX_NAMED)}"] if names else []
    if not what:
        return []
    return [
        f"replay {number} differs from the first in {' and '.join(what)}. The same machines gave two results: one of "
        "them computes wrongly, or a kernel adds in no fixed order"
    ]


def _compare_numbers(
    step: int, here: StepNumbers, recorded: StepNumbers, replayed: Replayed
) -> None:
    if _is_same(here, recorded):
        text = f"loss {here.loss!r}, gradient norm {here.gradient_norm!r}: as in {METRICS_FILE}"
        replayed.notes.append(f"step {step}: {text}")
        return
    replayed.findings.append(
        f"step {step}: loss {here.loss!r} and gradient norm {here.gradient_norm!r} here, {recorded.loss!r} and "
        f"{recorded.gradient_norm!r} in {METRICS_FILE}"
    )


def _is_same(one: StepNumbers, other: StepNumbers) -> bool:
    """Compare as metrics.jsonl keeps numbers: what is not finite is null there."""
    pairs = ((one.loss, other.loss), (one.gradient_norm, other.gradient_norm))
    return all(a == b or not (math.isfinite(a) or math.isfinite(b)) for a, b in pairs)


def _compare_tensors(run: Run, folder: Path, replayed: Replayed) -> None:
    """Compare with a checkpoint, a group of tensors at a time. Collective over the world."""
    different: list[str] = []
    for group in ("model.", "optimizer."):  # one copy of a group at a time
        here = {name: x.detach() for name, x in run.tensors.all().items() if name.startswith(group)}
        stored = {name: torch.zeros_like(x) for name, x in here.items()}
        load_checkpoint(folder, stored, is_verified=group != "model.")
        found = checksums_of(stored)
        different += [name for name, sum in checksums_of(here).items() if sum != found[name]]
    names = _union(different)
    if names:
        named = first_of(names, _MAX_NAMED)
        replayed.findings.append(f"{len(names)} tensors differ from {folder}: {named}")
    else:
        replayed.notes.append(f"all tensors have the bits of {folder}")


def _union(names: list[str]) -> list[str]:
    """Gather the names that any process gives. Collective over the world."""
    return list(dict.fromkeys(name for some in gather_everywhere(names) for name in some))
