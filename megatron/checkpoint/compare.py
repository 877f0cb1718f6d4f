"""What a checkpoint holds, and where two of them differ: whole tensors, whatever layouts wrote them.

Values pass in blocks of rows, so memory does not grow with the model. Bits count: 0.0 and -0.0 differ, and a nan
equals the same nan. Knows nothing of processes, models and command lines.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron.checkpoint.metadata import has_row_per_token, vocabulary_size
from megatron.checkpoint.safetensors_file import DTYPE_NAMES, row_blocks
from megatron.errors import CheckpointError

PADDING = " (padding)"  # after the name of a tensor whose rows of padding are meant
# of the state: how the run was cut and computed, not how far it came
LAYOUT_FIELDS = ("world_size", "kernels")

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorSource(Protocol):
    """Whole tensors by name, with what else was saved; `CheckpointReader` is one."""

    @property
    def folder(self) -> Path: ...
    @property
    def state(self) -> dict[str, Any]: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> torch.dtype: ...
    def read(self, name: str, rows: slice) -> Tensor: ...


@dataclass(frozen=True)
class Part:
    """A whole tensor, or of one with a row for each token either those rows or the rows of padding after them."""

    name: str  # with PADDING where that is what it is
    stored: str
    first_row: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_padding(self) -> bool:
        return self.name.endswith(PADDING)

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into runs (first, last + 1) of about BLOCK_BYTES; a scalar is a row."""
        rows = self.shape[0] if self.shape else 1
        return row_blocks(0, rows, self.num_bytes // max(1, rows))

    def read(self, source: TensorSource, first: int, last: int) -> Tensor:
        """Read rows first … last - 1 of this part."""
        return source.read(self.stored, slice(self.first_row + first, self.first_row + last))


@dataclass(frozen=True)
class Summary:
    """What the values of a part come to."""

    norm: float  # root of the sum of squares, in fp64
    sha256: str  # of the values' bytes, little-endian and row-major
    num_nan: int
    num_inf: int

    @property
    def is_finite(self) -> bool:
        return self.num_nan + self.num_inf == 0


@dataclass(frozen=True)
class Difference:
    """How a tensor differs from the one of the same name; num_values and what follows only where values do."""

    reason: str
    num_values: int = 0
    largest: float = 0.0  # absolute; infinite where one of the two is not finite
    index: tuple[int, ...] = ()  # of the largest
    values: tuple[float, float] = (0.0, 0.0)  # there


@dataclass(frozen=True)
class Pair:
    """A tensor of the first checkpoint and its counterpart in the second, where there is one."""

    first: Part | None
    second: Part | None
    reason: str | None = None  # why values cannot be compared; such a pair differs

    @property
    def name(self) -> str:
        part = self.first or self.second
        assert part is not None
        return part.name

    @property
    def is_compared(self) -> bool:
        return self.first is not None and self.second is not None and self.reason is None

    @property
    def num_rows(self) -> int:
        """Rows that are compared: layouts have different numbers of rows of padding."""
        assert self.first is not None and self.second is not None
        return min(self.first.shape[0], self.second.shape[0]) if self.first.shape else 1

    @property
    def num_bytes(self) -> int:
        """Bytes that `examine` reads."""
        if self.first is None:
            return 0
        if not self.is_compared or not self.first.num_bytes:
            return self.first.num_bytes
        rows = self.first.shape[0] if self.first.shape else 1
        return self.first.num_bytes + self.first.num_bytes // rows * self.num_rows


@dataclass
class Totals:
    """Sums over all tensors of the first checkpoint that were examined."""

    num_tensors: int = 0
    num_values: int = 0
    num_bytes: int = 0
    not_finite: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    _content: Any = field(default_factory=hashlib.sha256)

    @property
    def content(self) -> str:
        """SHA-256 of a line for each tensor with its hash, dtype, shape and name; padding left out.

        The same in every layout.
        """
        return str(self._content.hexdigest())

    def add(self, pair: Pair, summary: Summary | None, difference: Difference | None) -> None:
        """Account for what `examine` gave."""
        if difference is not None:
            self.different.append(pair.name)
        if pair.first is None or summary is None:
            return
        part = pair.first
        self.num_tensors += not part.is_padding
        self.num_values += part.num_values
        self.num_bytes += part.num_bytes
        if not summary.is_finite:
            self.not_finite.append(part.name)
        if not part.is_padding:
            shape = ",".join(map(str, part.shape))
            line = f"{summary.sha256} {DTYPE_NAMES[part.dtype]} [{shape}] {part.name}\n"
            self._content.update(line.encode())


def pair_tensors(
    first: TensorSource, second: TensorSource | None = None, pattern: str = "*"
) -> list[Pair]:
    """List the tensors of a checkpoint whose names match a shell pattern, and those of a second one beside them.

    Numbers in names count as numbers: layers.2 comes before layers.10. Raises CheckpointError if no name matches.
    """
    ours, theirs = _parts(first, pattern), _parts(second, pattern) if second is not None else {}
    if not ours and not theirs:
        example = min(first.names(), default=None)
        raise CheckpointError(
            f"{first.folder} has no tensor like {pattern!r}; names are such as {example!r}, and * stands for "
            f"any part of one"
        )
    pairs = []
    for name in sorted({**ours, **theirs}, key=_natural):
        one, other = ours.get(name), theirs.get(name)
        reason = None
        if second is not None:
            reason = _mismatch(one, other, first.folder, second.folder)
        if one is not None or reason is not None:
            pairs.append(Pair(one, other, reason))
    return pairs


def examine(
    pair: Pair,
    first: TensorSource,
    second: TensorSource | None = None,
    *,
    on_bytes: Callable[[int], object] = lambda num_bytes: None,
) -> tuple[Summary | None, Difference | None]:
    """Read a tensor once and sum it up, None where only the second has it; say how it differs from its counterpart.

    on_bytes is told of all bytes that are read, `pair.num_bytes` in sum. Raises CheckpointError for damaged files.
    """
    if pair.first is None:
        return None, Difference(pair.reason or "")
    part, compared = pair.first, _Comparison()
    digest, squares, num_nan, num_inf = hashlib.sha256(), 0.0, 0, 0
    for start, stop in part.blocks():
        block = part.read(first, start, stop)
        digest.update(block.reshape(-1).view(torch.uint8).numpy().data)
        values = block.reshape(-1).double()
        square = float(torch.dot(values, values))
        if not math.isfinite(square):
            num_nan += int(values.isnan().sum())
            num_inf += int(values.isinf().sum())
        squares += square
        on_bytes(block.nbytes)
        last = min(stop, pair.num_rows) if pair.is_compared else start
        if start < last:
            assert second is not None and pair.second is not None
            other = pair.second.read(second, start, last)
            compared.add(start, block[: last - start] if part.shape else block, other)
            on_bytes(other.nbytes)
    summary = Summary(math.sqrt(squares), digest.hexdigest(), num_nan, num_inf)
    return summary, Difference(pair.reason) if pair.reason else compared.difference()


def differing_fields(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Name the fields of two states that differ, nested ones with dots, and both values as JSON ("" if missing).

    What says only how a run was cut into processes and by which kernels it was computed is left out.
    """
    ours, theirs = flatten(first), flatten(second)
    return {
        name: (ours.get(name, ""), theirs.get(name, ""))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name) and name.partition(".")[0] not in LAYOUT_FIELDS
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Give the fields of nested objects, as JSON, by names with dots."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


class _Comparison:
    """Gathers, block by block, where two tensors of one dtype and shape differ."""

    def __init__(self) -> None:
        self._num_values = 0
        self._worst: Difference | None = None

    def add(self, first_row: int, ours: Tensor, theirs: Tensor) -> None:
        """Account for a run of rows."""
        bits = _BITS[ours.dtype.itemsize]
        if torch.equal(ours.view(bits), theirs.view(bits)):
            return
        is_different = ours.view(bits) != theirs.view(bits)
        self._num_values += int(is_different.sum())
        distance = (ours.double() - theirs.double()).abs()
        distance = distance.nan_to_num(nan=math.inf, posinf=math.inf)
        distance = torch.where(is_different, distance, -1.0)
        place = int(distance.argmax())
        largest = float(distance.reshape(-1)[place])
        if self._worst is not None and largest <= self._worst.largest:
            return
        index = [int(i) for i in torch.unravel_index(torch.tensor(place), ours.shape)]
        if index:
            index[0] += first_row
        values = (float(ours.reshape(-1)[place]), float(theirs.reshape(-1)[place]))
        self._worst = Difference("values differ", 0, largest, tuple(index), values)

    def difference(self) -> Difference | None:
        """Sum up, None where all bits were equal."""
        worst = self._worst
        if worst is None:
            return None
        return Difference(worst.reason, self._num_values, worst.largest, worst.index, worst.values)


def _parts(source: TensorSource, pattern: str) -> dict[str, Part]:
    vocab_size = vocabulary_size(source.config)
    parts = []
    for name in source.names():
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        shape, dtype = source.shape(name), source.dtype(name)
        num_tokens = shape[0] if shape else 0
        if vocab_size is not None and shape and has_row_per_token(name):
            num_tokens = min(num_tokens, vocab_size)
        if not shape or num_tokens == shape[0]:
            parts.append(Part(name, name, 0, shape, dtype))
            continue
        rest = shape[0] - num_tokens
        parts.append(Part(name, name, 0, (num_tokens, *shape[1:]), dtype))
        parts.append(Part(name + PADDING, name, num_tokens, (rest, *shape[1:]), dtype))
    return {part.name: part for part in parts}


def _mismatch(one: Part | None, other: Part | None, first: Path, second: Path) -> str | None:
    """Say why two tensors differ before their values are read, None if those decide.

    The number of rows of padding is a matter of the layout: those that both have are compared.
    """
    if one is None or other is None:
        part = one or other
        assert part is not None
        return None if part.is_padding else f"only in {first if other is None else second}"
    if one.dtype != other.dtype:
        return f"dtypes differ: {DTYPE_NAMES[one.dtype]} and {DTYPE_NAMES[other.dtype]}"
    shapes = (one.shape, other.shape)
    if one.is_padding:
        shapes = (one.shape[1:], other.shape[1:])
    if shapes[0] != shapes[1]:
        return f"shapes differ: {list(one.shape)} and {list(other.shape)}"
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort numbers in names as numbers."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)
    ]
