"""The benchmarks by name, and what each is run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron.errors import ConfigError
from megatron.evaluation.ds1000 import MEMORY, Form, load_ds1000
from megatron.evaluation.infilling import load_infilling
from megatron.evaluation.isolation.trial import Limits
from megatron.evaluation.multipl_e import load_multipl_e
from megatron.evaluation.python_task import load_human_eval, load_mbpp
from megatron.evaluation.task import Task

BENCHMARKS = ("ds1000", "humaneval", "infilling", "mbpp", "multipl-e")
# Where a candidate is to have more than others have.
LIMITS: Mapping[str, Limits] = {
    "ds1000": Limits(wall_seconds=60.0, cpu_seconds=30, memory=MEMORY, disk=64 << 20),
}


def load_benchmark(name: str, paths: Sequence[Path], form: Form = "completion") -> list[Task]:
    """Read the tasks of a benchmark. Raises ConfigError or DataError."""
    if name == "multipl-e":
        return load_multipl_e(paths)
    if len(paths) > 1:
        raise ConfigError(f"--tasks-file has {len(paths)} files; {name} is one")
    path = paths[0] if paths else None
    if name == "ds1000":
        return list(load_ds1000(path, form))
    if name == "infilling":
        return list(load_infilling(path))
    return list(load_human_eval(path) if name == "humaneval" else load_mbpp(path))
