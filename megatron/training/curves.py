"""The numbers of a run, read back from its metrics.jsonl, which may still be written to. No torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from megatron.errors import DataError


@dataclass
class Curves:
    """The numbers of one run by iteration: losses in training and of each validation set, in nats, and speed."""

    name: str
    train: dict[int, float] = field(default_factory=dict)
    validation: dict[str, dict[int, float]] = field(default_factory=dict)
    tokens_per_second: dict[int, float] = field(default_factory=dict)
    num_tokens: int = 0  # read in training, by the last line that says so

    def add_speed(self, iteration: int, record: dict[str, object]) -> None:
        """Take what a line says beside the loss, where it does."""
        speed, tokens = record.get("tokens_per_second"), record.get("consumed_tokens")
        if isinstance(speed, float) and math.isfinite(speed):
            self.tokens_per_second[iteration] = speed
        if type(tokens) is int:
            self.num_tokens = tokens


def read_curves(path: Path) -> Curves:
    """Read a metrics.jsonl. A line written twice counts as last written; a torn last line is passed over.

    Raises DataError for a file that is none, or holds no loss yet.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; give a run's metrics.jsonl") from None
    curves = Curves(name=name_of_run(path.parent))
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if "iteration" in record and "lm_loss" not in record:
                continue  # of something else: what was read of a source, steps that come again, a slow process
            iteration, loss = _whole(record["iteration"]), _number(record["lm_loss"])
            name = str(record["validation"]) if "validation" in record else None
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            if number == len(lines):
                break
            raise DataError(
                f"{path} line {number} is no record of a run (it needs iteration and lm_loss)"
            ) from None
        if loss is None:
            continue  # a loss that was not finite
        if name is not None:
            curves.validation.setdefault(name, {})[iteration] = loss
        else:
            curves.train[iteration] = loss
            curves.add_speed(iteration, record)
    if not curves.train and not curves.validation:
        raise DataError(f"{path} holds no loss yet; let the run reach a log interval")
    return curves


def name_of_run(folder: Path) -> str:
    """Give the name of a run by its folder, or by the folder of its checkpoints."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "checkpoints" else folder.name


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise TypeError("no iteration")
    return value


def _number(value: object) -> float | None:
    """Give a finite loss; None for one that was not."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("no loss")
    return float(value) if math.isfinite(value) else None
