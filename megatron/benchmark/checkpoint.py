"""`bench.py checkpoint`: how long training stands still for a save, and a load with its hashes, against plain copies.

Tensors of a run, weights and both moments, are saved and loaded by all processes as a run does it; beside it, in turns,
each process writes and reads as many bytes as a plain file.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from megatron import logging
from megatron.checkpoint.checksums import forget_cached
from megatron.errors import ConfigError
from megatron.options import ParallelConfig
from megatron.parallel.launch import Launch

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """\
  a model of 40 million parameters (0.5 GB with its moments) in one process, and in two:
    python tools/bench.py checkpoint --parameters 40000000 --folder runs/bench
    torchrun --standalone --nproc-per-node 2 tools/bench.py checkpoint --parameters 40000000 --folder runs/bench"""
ROW = 1024  # values of a row
ROWS = 4096  # of a tensor, at most
SOURCES = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench.py checkpoint`."""
    parser.add_argument(
        "--parameters", type=int, required=True, metavar="N", help="of the whole model"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="on the disk that is measured"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of every measurement (default: 5)")


def run(args: argparse.Namespace) -> None:
    """Measure and print a table. Every process calls it."""
    if args.parameters < ROW or args.rounds < 1:
        raise ConfigError(f"--parameters is at least {ROW}, --rounds at least 1")
    launch = Launch.from_environment()
    logging.configure(launch.rank)
    import torch.distributed as dist

    from megatron.parallel.agreement import on_first_rank
    from megatron.parallel.context import initialize_distributed

    device = initialize_distributed(ParallelConfig(), launch)
    args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(on_first_rank(lambda: tempfile.mkdtemp(dir=args.folder, prefix="checkpoint-")))
    try:
        bench = Bench(folder, _tensors(args.parameters, launch, device), launch.rank)
        seconds = bench.measure(args.rounds)
    finally:
        if launch.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if launch.rank == 0:
        print("\n".join(_table(seconds, 12 * args.parameters, launch.world_size)))
    dist.barrier()
    dist.destroy_process_group()


def _tensors(num_parameters: int, launch: Launch, device: object) -> dict[str, Tensor]:
    """Make this process's share of a run's tensors."""
    import torch

    assert isinstance(device, torch.device)
    rows = num_parameters // launch.world_size // ROW
    return {
        f"{source}.rank_{launch.rank}.{first}": torch.randn(
            min(ROWS, rows - first), ROW, device=device
        )
        for source in SOURCES
        for first in range(0, rows, ROWS)
    }


class Bench:
    """What is timed. All methods are collective over the world."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor], rank: int) -> None:
        from megatron.checkpoint.save_plan import plan_save
        from megatron.checkpoint.snapshot import HostMemory

        self._root, self._tensors = folder / "run", tensors
        self._plain = folder / f"plain_{rank}"
        self._plan, self._memory = plan_save(tensors), HostMemory()
        self._rank, self._iteration = rank, 0

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Give the seconds of every round of everything that is measured, in turns; the first round is not counted."""
        works: dict[str, Callable[[], object]] = {
            "plain write": self._write_plain,
            "plain read": self._read_plain,
            "save": self._save,
            "save without hashes": self._save_unhashed,
            "save --async-save, until training goes on": self._begin,
            "save --async-save, until it counts": self._end,
            "check of the hashes": self._verify,
            "load, hashes checked": self._load,
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for number in range(rounds + 1):
            for name, work in works.items():
                taken = _slowest(work)
                self._clean()
                if number > 0:
                    seconds[name].append(taken)
        begin, end = (name for name in works if "async" in name)
        seconds[end] = [a + b for a, b in zip(seconds[begin], seconds[end], strict=True)]
        return seconds

    def _clean(self) -> None:
        """Remove what the next work writes anew, so that none is given memory that another just left."""
        if self._rank == 0 and self._root.is_dir():
            for folder in self._root.glob("iter_???????"):
                if folder.name < f"iter_{self._iteration:07d}":
                    shutil.rmtree(folder)

    def _write_plain(self) -> None:
        from megatron.checkpoint.safetensors_file import SafetensorsWriter
        from megatron.checkpoint.save_plan import part_values

        specs = [part.spec for part in self._plan.parts]
        with SafetensorsWriter(self._plain, specs) as writer:
            for spec, values in zip(specs, part_values(self._plan, self._tensors), strict=True):
                writer.write(spec.key, values)

    def _save(self) -> None:
        from megatron.checkpoint.save import save_checkpoint

        self._iteration += 1
        save_checkpoint(
            self._root, self._iteration, self._tensors, state={}, config={}, plan=self._plan
        )

    def _save_unhashed(self) -> None:
        """Save as `_save` does, with the wrong hashes: those of nothing."""
        with mock.patch("megatron.checkpoint.content_hash.ContentHash.add"):
            self._save()

    def _begin(self) -> None:
        from megatron.checkpoint.background import begin_save

        self._iteration += 1
        self._pending = begin_save(
            self._root,
            self._iteration,
            self._tensors,
            state={},
            config={},
            plan=self._plan,
            memory=self._memory,
        )

    def _end(self) -> None:
        self._pending.advance()
        self._pending.advance()

    def _read_plain(self) -> None:
        forget_cached(self._plain)
        block = memoryview(bytearray(8 << 20))
        with self._plain.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
        self._plain.unlink()

    def _forget(self) -> Path:
        folder = self._root / f"iter_{self._iteration:07d}"
        for path in folder.iterdir():
            forget_cached(path)
        return folder

    def _verify(self) -> None:
        from megatron.checkpoint.verify import verify_files_together

        verify_files_together(self._forget())

    def _load(self) -> None:
        from megatron.checkpoint.load import load_checkpoint

        load_checkpoint(self._forget(), self._tensors)


def _slowest(work: Callable[[], object]) -> float:
    """Time work from a moment that all processes share until the last one is done."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    started = time.perf_counter()
    work()
    taken = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return float(taken)


def _table(seconds: dict[str, list[float]], num_bytes: int, num_processes: int) -> list[str]:
    """Give the lines of a table in Markdown."""
    lines = [
        f"{num_bytes / 1e9:.2f} GB by {num_processes} processes, medians of {len(seconds['save'])} rounds",
        "",
        "| what | seconds | spread | GB/s |",
        "|---|---|---|---|",
    ]
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        lines.append(f"| {name} | {median:.2f} | {spread} | {num_bytes / median / 1e9:.2f} |")
    save, stall = seconds["save"], seconds["save --async-save, until training goes on"]
    ratios = sorted(a / b for a, b in zip(stall, save, strict=True))
    costs = sorted(b / a for a, b in zip(seconds["plain write"], save, strict=True))
    hashes = sorted(a / b - 1 for a, b in zip(save, seconds["save without hashes"], strict=True))
    lines += [
        "",
        f"hashes add to a save: {statistics.median(hashes):.0%} ({hashes[0]:.0%} to {hashes[-1]:.0%})",
        f"stall of --async-save over that of a save: {statistics.median(ratios):.0%} "
        f"({ratios[0]:.0%} to {ratios[-1]:.0%})",
        f"a save over a plain write: {statistics.median(costs):.2f} ({costs[0]:.2f} to {costs[-1]:.2f})",
    ]
    return lines
