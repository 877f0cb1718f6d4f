"""A save in a process of its own, which may not live to its end: what tests/faults/test_every_boundary.py starts."""

import sys
from pathlib import Path
from typing import Any

import torch

from megatron import whole_file
from megatron.benchmark.fault_injection import moments
from megatron.benchmark.fault_injection.fault import Fault
from megatron.benchmark.fault_injection.tripwire import Tripwire
from megatron.checkpoint import layout
from megatron.checkpoint import save as save_module
from megatron.checkpoint.save import save_checkpoint
from megatron.errors import CheckpointError


def tensors(iteration: int) -> dict[str, torch.Tensor]:
    """What a checkpoint of that iteration holds."""
    draw = torch.Generator().manual_seed(iteration)
    return {
        "model.weight": torch.randn(5, 3, generator=draw),
        "optimizer.exp_avg.weight": torch.randn(7, generator=draw).bfloat16(),
    }


def save(values: dict[str, Any]) -> None:
    """Save one checkpoint with a fault on the way; leave as a command line does after an error of the user."""
    root = Path(values["root"])
    fault = Fault(**values["fault"]) if values["fault"] else None
    if values.get("breaks"):
        BREAKS[values["breaks"]]()
    tripwire = Tripwire(root, fault, Path(values["journal"]), records=values.get("records", False))
    moments.install(tripwire)
    iteration = values["iteration"]
    state, config = {"iteration": iteration}, {"seed": 1}
    try:
        save_checkpoint(root, iteration, tensors(iteration), state=state, config=config)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    tripwire.passes("end")


def _forget_folders() -> None:
    force_to_disk = whole_file.force_to_disk

    def force_files(path: Path) -> None:
        if not path.is_dir():
            force_to_disk(path)

    for module in (whole_file, layout, save_module):
        module.force_to_disk = force_files


def _tracker_first() -> None:
    def publish(root: Path, side: Path, iteration: int) -> Path:
        layout.replace_durably(root / layout.TRACKER, f"{iteration}\n".encode())
        side.rename(root / f"iter_{iteration:07d}")
        return root / f"iter_{iteration:07d}"

    layout.publish = publish


# Ways to get a save wrong, which the tests have to see.
BREAKS = {"folders are not synced": _forget_folders, "tracker before folder": _tracker_first}
