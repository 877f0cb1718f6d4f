"""Runs in processes of their own, of which one gets a fault and all have a watch. Rendezvous through a file."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from megatron import cli, logging
from megatron.parallel.launch import Launch
from megatron.training.inputs import open_inputs
from megatron.training.marks import Marks
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.train import train
from megatron.training.watchdog.straggler import Stragglers
from megatron.training.watchdog.watch import Watch
from tests.grid import grid_of
from tests.training.runs import parse
from tests.world import preloaded

PATIENCE_SECONDS = 300


class KilledInSave:
    """A saver whose process is killed when the others save."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def save_if_due(self, progress, *, is_last):
        if progress.iteration == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.save_if_due(progress, is_last=is_last)


class Faulty:
    """A loader that stops, kills, fails or delays its process."""

    def __init__(self, inner, fault: str, step: int):
        self._inner, self._fault, self._step = inner, fault, step

    def batch(self, consumed, size):
        step = consumed // size + 1
        if self._fault == "delay":
            time.sleep(0.4)  # far above what a busy machine does
        elif step == self._step:
            if self._fault == "memory":
                raise MemoryError("cannot allocate")
            os.kill(os.getpid(), getattr(signal, self._fault))
        return self._inner.batch(consumed, size)

    def close(self):
        self._inner.close()


def _train(rank: int, size: int, folder: str, flags: str, fault: str) -> None:
    """Train under a watch; the last rank gets the fault. What it says goes to a file."""
    with Path(folder, f"stderr_{rank}").open("w") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
    logging.configure(rank)
    config = parse(flags)
    marks = Marks()
    launch = Launch(rank, rank, size, size)

    def main() -> None:
        with Watch(config, launch, marks) as watch:
            watch._stragglers = Stragglers(window_seconds=0.5)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=PATIENCE_SECONDS),
            )
            context = grid_of(config.parallel)
            watch.connect(context)
            watch.begin_heartbeat()
            inputs = open_inputs(config, size)
            run = build_run(inputs, plan_start(inputs, size), context, marks)
            if rank == size - 1 and fault == "SIGKILL in save":
                run = dataclasses.replace(run, saver=KilledInSave(run.saver))
            elif rank == size - 1:
                run = dataclasses.replace(run, loader=Faulty(run.loader, fault, 4))
            watch.outcome = train(run)
            run.close()
            dist.barrier()

    sys.argv[0] = "pretrain_gpt.py"
    cli.run_tool(main)


@dataclass(frozen=True)
class Ended:
    """How processes ended."""

    exit_codes: list[int | None]  # None: still there
    said: list[str]


def train_watched(size: int, folder: Path, flags: str, fault: str) -> Ended:
    """Run it, wait for all processes but one that is stopped, and kill what is left."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(preloaded())
    started = time.monotonic()
    processes = [
        context.Process(target=_train, args=(rank, size, str(folder), flags, fault))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes[: size - 1 if fault == "SIGSTOP" else size]:
        process.join(max(0.0, started + PATIENCE_SECONDS - time.monotonic()))
    exit_codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    said = [Path(folder, f"stderr_{rank}").read_text() for rank in range(size)]
    return Ended(exit_codes, said)
