"""Tensors of one system as rows of another's: what an architecture says once, for both directions.

Every tensor of the one side is a run of rows of one of the other or several such runs one after another, nothing
is transposed: both sides have `nn.Linear`'s layout. So a conversion needs memory for a few rows, whatever the model.
Knows nothing of files, nor of any architecture.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows start … stop - 1 of a tensor of the other side, by its name."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class MappedTensor:
    """A tensor of one side and the rows of the other that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[Rows, ...]

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


def invert(tensors: list[MappedTensor]) -> list[MappedTensor]:
    """Turn tensors made of the other side's rows into the other side's, made of theirs. Every row must be used once."""
    parts: dict[str, dict[int, Rows]] = defaultdict(dict)  # by name, then by first row
    columns: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        place = 0
        for rows in tensor.rows:
            count = rows.stop - rows.start
            parts[rows.name][rows.start] = Rows(tensor.name, place, place + count)
            columns[rows.name] = tensor.shape[1:]
            place += count
    result = []
    for name, by_start in parts.items():
        end = 0
        for start, rows in sorted(by_start.items()):
            assert start == end, f"rows {end} to {start} of {name} have no source"
            end += rows.stop - rows.start
        ordered = tuple(rows for _, rows in sorted(by_start.items()))
        result.append(MappedTensor(name, (end, *columns[name]), ordered))
    return result


def linear(
    theirs: str, ours: str, rows: int, columns: int, *, has_bias: bool = True
) -> list[MappedTensor]:
    """Give weight [rows, columns] and bias of a product that is the same on both sides."""
    weight = whole(f"{theirs}.weight", f"{ours}.weight", rows, columns)
    return [weight, whole(f"{theirs}.bias", f"{ours}.bias", rows)] if has_bias else [weight]


def norm(theirs: str, ours: str, size: int) -> list[MappedTensor]:
    """Give weight and bias of a LayerNorm."""
    return [whole(f"{theirs}.{kind}", f"{ours}.{kind}", size) for kind in ("weight", "bias")]


def whole(theirs: str, ours: str, rows: int, *columns: int) -> MappedTensor:
    """Give a tensor that is the first rows of one of the other side."""
    return MappedTensor(theirs, (rows, *columns), (Rows(ours, 0, rows),))
