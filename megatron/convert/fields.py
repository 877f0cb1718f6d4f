"""Values of another program's configuration, taken one by one with a type, or refused by name.

Knows nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron.errors import CheckpointError


@dataclass(frozen=True)
class Fields:
    """Named values and where they stand. Every method raises CheckpointError naming place, field and value."""

    values: Mapping[str, object]
    where: str

    def whole(self, name: str, default: int | None = None) -> int:
        """Give a whole number above 0. Without a default it must be there; null counts as not there."""
        value = self._value(name, default)
        if type(value) is not int or value < 1:
            raise self.refusal(name, "it has to be a whole number above 0")
        return value

    def number(self, name: str, default: float) -> float:
        """Give a finite number."""
        value = self._value(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise self.refusal(name, "it has to be a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Give true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.refusal(name, "it has to be true or false")
        return value

    def require(self, name: str, allowed: Sequence[object], what: str) -> None:
        """Raise unless a field is absent, null or one of the values allowed. what: what only those can say."""
        value = self.values.get(name)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            raise self.refusal(name, what)

    def refusal(self, name: str, why: str) -> CheckpointError:
        """Make the error that names a field and its value."""
        shown = repr(self.values[name])[:80] if name in self.values else "missing"
        return CheckpointError(f"{self.where}: {name} is {shown}; {why}")

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        return default if value is None else value
