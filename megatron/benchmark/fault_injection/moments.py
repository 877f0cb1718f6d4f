"""The moments of a training run that are no changes of files: steps and their parts, collectives, reading, logging.

Wraps the functions that stand for them, in this process and from now on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining.stage import _PipelineStageBase

from megatron.benchmark.fault_injection.tripwire import Tripwire
from megatron.checkpoint.safetensors_file import SafetensorsReader, SafetensorsWriter
from megatron.data.loader import BatchLoader
from megatron.model.gpt import GPTModel
from megatron.optimizer.adamw import AdamW
from megatron.parallel import collectives
from megatron.training import train
from megatron.training.evaluate import Validation
from megatron.training.metrics import MetricsWriter

METHODS = {
    "load": (SafetensorsReader, "read_box"),
    "read batch": (BatchLoader, "batch"),
    "forward": (GPTModel, "forward"),
    "backward": (torch.Tensor, "backward"),
    "backward of stage": (_PipelineStageBase, "backward_one_chunk"),
    "update": (AdamW, "step"),
    "validate": (Validation, "run"),
    "log": (MetricsWriter, "_write"),
    "leave": (dist, "destroy_process_group"),
}
COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_gather_object",
    "gather_object",
    "scatter_object_list",
    "broadcast_object_list",
    "batch_isend_irecv",
    "barrier",
)


def install(tripwire: Tripwire) -> None:
    """Let the tripwire see the moments of a run."""
    tripwire.install()
    for moment, (owner, name) in METHODS.items():
        _precede(owner, name, tripwire, moment)
    for name in COLLECTIVES:
        _precede(dist, name, tripwire, f"collective {name}")
    for name in ("_all_gather", "_reduce_scatter"):  # names that were bound at import
        _precede(collectives, name, tripwire, f"collective {name.lstrip('_')}")
    _watch_steps(tripwire)
    _tear_writes(tripwire)


def _precede(owner: Any, name: str, tripwire: Tripwire, moment: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tripwire.passes(moment)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _watch_steps(tripwire: Tripwire) -> None:
    """Note from which sample on each step took its batch, and when it was over."""
    original = train.train_step

    def train_step(*args: Any, consumed_samples: int, **kwargs: Any) -> Any:
        tripwire.note("step", consumed_samples=consumed_samples)
        tripwire.passes("step")
        result = original(*args, consumed_samples=consumed_samples, **kwargs)
        tripwire.note("stepped")
        return result

    train.train_step = train_step


def _tear_writes(tripwire: Tripwire) -> None:
    original: Callable[[SafetensorsWriter, memoryview], None] = SafetensorsWriter._append

    def append(writer: SafetensorsWriter, data: memoryview) -> None:
        name = tripwire.name_of(writer._file.name)
        if name is not None:
            tripwire.passes(f"write {name}", lambda: original(writer, data[: len(data) // 2]))
        original(writer, data)

    SafetensorsWriter._append = append  # type: ignore[method-assign, assignment]
