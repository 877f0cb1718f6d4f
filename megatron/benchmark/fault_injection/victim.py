"""A process of a training run that carries a fault: started in place of tools/pretrain_gpt.py, which it then runs.

Under a launcher:  launch.py … -m megatron.benchmark.fault_injection.victim PLAN.json tools/pretrain_gpt.py FLAGS
PLAN.json is {"root": the run's --save, "folder": for journals, "faults": [[rank, moment, occurrence, action], …]}:
each start of the launch carries the first fault that has not happened yet.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import json
import os
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.benchmark.fault_injection.fault import Fault

if TYPE_CHECKING:
    from megatron.benchmark.fault_injection.tripwire import Tripwire


@dataclass(frozen=True)
class Rank:
    """One process of an attempt: what it runs, and what happens to it."""

    rank: int
    world_size: int
    script: str
    flags: list[str]
    root: str  # the run's --save
    journal: str
    rendezvous: str  # a file that does not exist yet
    fault: Fault | None
    records: bool = False  # note every moment in the journal
    pristine: str | None = (
        None  # do not train: compare what was loaded with the checkpoints of this run
    )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rank:
        """Undo `dataclasses.asdict`."""
        fault = values.pop("fault")
        return cls(**values, fault=Fault(**fault) if fault else None)


def be_rank(values: dict[str, Any]) -> None:
    """Run as one rank in a process forked for it: no launcher, no port."""
    import torch
    import torch.distributed as dist

    from megatron.benchmark.fault_injection import moments
    from megatron.benchmark.fault_injection.tripwire import Tripwire
    from megatron.parallel.launch import Launch

    me = Rank.from_json(values)
    faulthandler.register(signal.SIGUSR2)  # the nursery asks a process that hangs where it stands
    torch.set_num_threads(1)
    tripwire = Tripwire(Path(me.root), me.fault, Path(me.journal), records=me.records)
    tripwire.note("start")
    moments.install(tripwire)
    if me.pristine is not None:
        _compare_in_place_of_training(Path(me.pristine), tripwire)
    launch = Launch(
        *(me.rank, me.rank, me.world_size, me.world_size, me.world_size > 1),
        parent_pid=os.getppid(),
    )
    Launch.from_environment = classmethod(lambda cls: launch)  # type: ignore[method-assign, assignment]
    if me.world_size > 1:
        meet = f"file://{me.rendezvous}"
        dist.init_process_group = functools.partial(dist.init_process_group, init_method=meet)
    sys.argv = [me.script, *me.flags]
    runpy.run_path(me.script, run_name="__main__")


def _compare_in_place_of_training(pristine: Path, tripwire: Tripwire) -> None:
    """Let a run end when it has loaded its checkpoint, and note which that was and what is not as it should be."""
    from megatron.benchmark.fault_injection.judge import Snapshot, whole
    from megatron.checkpoint.layout import checkpoint_folder
    from megatron.training import pretrain
    from megatron.training.run import Run

    def compare(run: Run, _started: float | None = None) -> str:
        progress, tensors = run.progress, run.tensors
        found: dict[str, Any] = {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            "optimizer_steps": tensors.optimizer.num_steps,
            "loss_scale": tensors.loss_scale.state(),
            "interval": dataclasses.asdict(progress.interval),
        }
        difference: str | None = "nothing was loaded"
        if progress.iteration > 0:
            wanted = Snapshot.read(checkpoint_folder(pristine, progress.iteration))
            loaded = tensors.all()
            wanted_state = {name: wanted.state.get(name) for name in found}
            difference = Snapshot(
                found, {name: whole(loaded[name]) for name in sorted(loaded)}
            ).difference(Snapshot(wanted_state, wanted.tensors))
        tripwire.note("loaded", iteration=progress.iteration, difference=difference)
        return "finished"

    pretrain.train = compare  # type: ignore[assignment]


def main() -> None:
    """Run as a launcher's process."""
    from megatron.benchmark.fault_injection import moments
    from megatron.benchmark.fault_injection.tripwire import Tripwire
    from megatron.parallel.launch import Launch

    plan = json.loads(Path(sys.argv[1]).read_text())
    folder, rank = Path(plan["folder"]), Launch.from_environment().rank
    number = len(list(folder.glob("fired-*")))
    fault = None
    if number < len(plan["faults"]):
        victim, *rest = plan["faults"][number]
        fault = Fault(*rest) if victim == rank else None
    tripwire = Tripwire(
        Path(plan["root"]),
        fault,
        folder / f"journal-{rank}.jsonl",
        marker=folder / f"fired-{number}",
    )
    tripwire.note("start")
    moments.install(tripwire)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
