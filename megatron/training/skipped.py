"""Samples that a run left out for good, so that the samples of a step do not follow from its number alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SkippedSamples:
    """Samples that a run left out when it went back to a checkpoint."""

    after: int  # the iteration that it went back to: the next step takes samples from stop on
    start: int
    stop: int


def skipped_in(state: Mapping[str, Any]) -> tuple[SkippedSamples, ...]:
    """Give what a checkpoint's state says of it."""
    return tuple(SkippedSamples(**one) for one in state.get("skipped", ()))


def first_sample(iteration: int, consumed: int, skipped: Sequence[SkippedSamples]) -> int:
    """Give the sample that the step after `iteration` begins with; it would be `consumed` if none was left out."""
    return next((one.stop for one in skipped if one.after == iteration), consumed)


def is_of_same_past(
    iteration: int, state: Mapping[str, Any], skipped: Sequence[SkippedSamples]
) -> bool:
    """Say whether a checkpoint was saved by the run that left these samples out, and not in steps it went back from."""
    return skipped_in(state) == tuple(one for one in skipped if one.after < iteration)
