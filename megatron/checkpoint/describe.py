"""What `megatron.checkpoint.compare` found, in lines for people and in JSON values for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from megatron.checkpoint.compare import Difference, Pair, Summary, Totals, flatten
from megatron.checkpoint.safetensors_file import DTYPE_NAMES

SHOWN_DIGITS = 16  # of a hash, for people


def describe_tensor(
    pair: Pair, summary: Summary | None, difference: Difference | None
) -> list[str]:
    """Give the line of a tensor, and one more for each thing that is wrong with it."""
    lines = [pair.name]
    if pair.first is not None and summary is not None:
        part = pair.first
        lines = [
            f"{pair.name}  {list(part.shape)} {DTYPE_NAMES[part.dtype]}  norm {summary.norm:.9g}  "
            f"sha256 {summary.sha256[:SHOWN_DIGITS]}"
        ]
        if not summary.is_finite:
            lines.append(f"  not finite: {summary.num_nan:,} nan, {summary.num_inf:,} inf")
    if difference is not None:
        lines.append(f"  {describe_difference(pair, difference)}")
    return lines


def describe_difference(pair: Pair, difference: Difference) -> str:
    """Say how a tensor differs."""
    if not difference.num_values:
        return difference.reason
    assert pair.first is not None
    total = pair.first.num_values
    one, other = difference.values
    return (
        f"{difference.reason}: {difference.num_values:,} of {total:,}, most at {list(difference.index)}, "
        f"{one:.9g} and {other:.9g}, by {difference.largest:.3g}"
    )


def tensor_to_json(
    pair: Pair, summary: Summary | None, difference: Difference | None
) -> dict[str, Any]:
    """Give plain JSON values of a tensor; a number that is not finite is null."""
    values: dict[str, Any] = {"tensor": pair.name}
    if pair.first is not None and summary is not None:
        values |= {
            "shape": list(pair.first.shape),
            "dtype": DTYPE_NAMES[pair.first.dtype],
            "norm": _number(summary.norm),
            "sha256": summary.sha256,
            "nan": summary.num_nan,
            "inf": summary.num_inf,
        }
    if difference is not None:
        values["difference"] = {"reason": difference.reason}
        if difference.num_values:
            values["difference"] |= {
                "num_values": difference.num_values,
                "largest": _number(difference.largest),
                "index": list(difference.index),
                "values": [_number(value) for value in difference.values],
            }
    return values


def describe_totals(totals: Totals) -> str:
    """Sum up in one line what was read of the first checkpoint."""
    bad = f", NOT FINITE: {_some(totals.not_finite)}" if totals.not_finite else ""
    return (
        f"{totals.num_tensors:,} tensors, {totals.num_values:,} values, {totals.num_bytes / 1e6:,.1f} MB, "
        f"content {totals.content[:SHOWN_DIGITS]}{bad}"
    )


def totals_to_json(totals: Totals, state: Mapping[str, Any]) -> dict[str, Any]:
    """Give plain JSON values of what was read of the first checkpoint."""
    return {
        "tensors": totals.num_tensors,
        "values": totals.num_values,
        "bytes": totals.num_bytes,
        "content": totals.content,
        "not_finite": totals.not_finite,
        "state": dict(state),
    }


def describe_state(state: Mapping[str, Any]) -> list[str]:
    """Give the fields of a state, nested ones with dots, of long ones the beginning."""
    return [
        f"{name} {value if len(value) <= 80 else f'{value[:40]}… ({len(value)} characters)'}"
        for name, value in flatten(state).items()
    ]


def verdict_to_json(totals: Totals, fields: Mapping[str, tuple[str, str]] | None) -> dict[str, Any]:
    """Give plain JSON values of how two checkpoints compare.

    fields: of the state, None where it was not compared; a field that one lacks is null there.
    """
    return {
        "equal": not totals.different and not fields,
        "different": totals.different,
        "state_differences": None
        if fields is None
        else {
            name: [json.loads(value) if value else None for value in values]
            for name, values in fields.items()
        },
    }


def describe_verdict(totals: Totals, fields: Mapping[str, tuple[str, str]] | None) -> list[str]:
    """Say whether two checkpoints are equal, and if not, where the first difference is; fields as above."""
    if totals.different:
        verdict = f"different: {_some(totals.different)}; the first is {totals.different[0]}"
    elif fields:
        verdict = "different: the state; every tensor is equal bit for bit"
    else:
        verdict = "equal: every tensor bit for bit" + (", and the state" if fields == {} else "")
    return [
        verdict,
        *(
            f"  state {name}: {one or 'none'} and {two or 'none'}"
            for name, (one, two) in (fields or {}).items()
        ),
    ]


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{len(names):,} tensors"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
