"""The numbers of a run by iteration, as curves to draw. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from megatron.errors import DataError
from megatron.metrics_file import LossLine, read_losses


@dataclass
class Curves:
    """The numbers of one run by iteration: losses in training and of each validation set, in nats, and speed."""

    name: str
    train: dict[int, float] = field(default_factory=dict)
    validation: dict[str, dict[int, float]] = field(default_factory=dict)
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    num_tokens: int = 0  # read in training, by the last line that says so

    def add(self, line: LossLine) -> None:
        """Take what a line says, if its loss is finite."""
        if not math.isfinite(line.loss):
            return
        if line.validation is not None:
            self.validation.setdefault(line.validation, {})[line.iteration] = line.loss
            return
        self.train[line.iteration] = line.loss
        speed, tokens = line.values.get("tokens_per_second"), line.values.get("consumed_tokens")
        if isinstance(speed, float) and math.isfinite(speed):
            self.tokens_per_second[line.iteration] = speed
        if type(tokens) is int:
            self.num_tokens = tokens


def read_curves(path: Path) -> Curves:
    """Read a metrics.jsonl. A line written twice counts as last written; a torn last line is passed over.

    Raises DataError for a file that is none, or holds no loss yet.
    """
    curves = Curves(name=name_of_run(path.parent))
    for line in read_losses(path):
        curves.add(line)
    if not curves.train and not curves.validation:
        raise DataError(f"{path} holds no loss yet; let the run reach a log interval")
    return curves


def name_of_run(folder: Path) -> str:
    """Give the name of a run by its folder, or by the folder of its checkpoints."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "checkpoints" else folder.name
