"""The losses of a run, read back from its metrics.jsonl, which may still be written to. No torch.

megatron/training/metrics.py writes it. Knows nothing of what is made of the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import DataError

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class LossLine:
    """A line that says a loss: of training, or of a validation set."""

    iteration: int
    loss: float  # nats a token; NaN where it was not finite
    validation: str | None  # the set
    values: Mapping[str, Any]  # all that the line says


def read_losses(path: Path) -> Iterator[LossLine]:
    """Give the lines that say a loss, as they were written; a torn last line is passed over.

    Raises DataError for a file that cannot be read, and for a line that no run writes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; give a run's {METRICS_FILE}"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; give a run's {METRICS_FILE}") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if "iteration" in record and "lm_loss" not in record:
                continue  # of something else: what was read of a source, steps that come again, a slow process
            name = str(record["validation"]) if "validation" in record else None
            one = LossLine(_whole(record["iteration"]), _number(record["lm_loss"]), name, record)
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            if number == len(lines):
                return
            raise DataError(
                f"{path} line {number} is no record of a run (it needs iteration and lm_loss)"
            ) from None
        yield one


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise TypeError("no iteration")
    return value


def _number(value: object) -> float:
    """Give a loss; what was not finite is null in the file."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("no loss")
    return float(value)
