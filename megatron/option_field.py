"""One option: how a section declares it, which flag it has, and the bounds of its value.

A section is a frozen dataclass whose fields are made by `option`; `megatron.cli` makes the flags from them. Knows no
option by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from megatron.errors import ConfigError


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare one field: its default, its help text, its flag where the name does not give it, and its bounds.

    parse: reads its text where its type alone does not say how; ConfigError if that cannot be read.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "flag": flag,
            "metavar": metavar,
            "parse": parse,
            "bounds": {"from": minimum, "above": above, "up to": maximum, "below": below},
        },
    )


def flag_of(field: dataclasses.Field[Any]) -> str:
    """Give the flag of a field: its name with dashes, unless it states another."""
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def check_bounds(section: Any) -> None:
    """Raise ConfigError if a number of a section lies outside the bounds its field declares."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        bounds = {k: v for k, v in field.metadata.get("bounds", {}).items() if v is not None}
        if not bounds or value is None:
            continue
        holds = (
            (isinstance(value, int) or math.isfinite(value))
            and value >= bounds.get("from", -math.inf)
            and value > bounds.get("above", -math.inf)
            and value <= bounds.get("up to", math.inf)
            and value < bounds.get("below", math.inf)
        )
        allowed = ", ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        shown = "not set" if value == field.default == 0 else value
        require(holds, f"{flag_of(field)} is {shown}; allowed: {allowed}")


def derived(default: Any = None) -> Any:
    """Declare a field that no flag sets: whoever builds the section fills it (see its comment)."""
    return dataclasses.field(default=default, metadata={"derived": True})


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless condition holds."""
    if not condition:
        raise ConfigError(message)
