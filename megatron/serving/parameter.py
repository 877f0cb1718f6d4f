"""Reading the values of a JSON object one by one: each has a type and bounds, and no name is left over.

Knows nothing of completions.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import orjson

from megatron.serving.error import RequestError

# What clients of other interfaces send, and what to send here.
ELSEWHERE = {
    "messages": "there is no chat; send the text to continue as prompt",
    "max_completion_tokens": "send max_tokens",
    "max_new_tokens": "send max_tokens",
    "input": "send prompt",
    "inputs": "send prompt",
}
MAX_SHOWN = 80  # characters of a value


def shown(value: Any) -> str:
    """Spell a value of JSON as its client did, cut where it is long."""
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested deeper than it writes
        text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def read_object(body: bytes) -> dict[str, Any]:
    """Parse a body: a JSON object. Raises RequestError."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}; send an object in UTF-8") from None
    if not isinstance(values, dict):
        raise RequestError(
            f"the body holds {shown(values)}; send an object, such as "
            f'{{"model": "…", "prompt": "def f("}}'
        )
    return values


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    """Say what a parameter may be; null is none that was given."""
    what = "is missing" if value is None else f"is {shown(value)}"
    raise RequestError(f"{name} {what}; allowed: {allowed}", param=name)


class Parameters:
    """The values of an object; null is as if a name were not given."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._left = set(values)
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """Give a value as it is, None for one that is not given."""
        self._left.discard(name)
        self._known.append(name)
        return self._values.get(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            refuse(self._prefix + name, value, "true, false")
        return value

    def text(self, name: str, default: str | None) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            refuse(self._prefix + name, value, "a string")
        return default if value is None else value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        value = self.take(name)
        if value is not None and value not in choices:
            refuse(self._prefix + name, value, ", ".join(choices))
        return default if value is None else value

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            refuse(self._prefix + name, value, f"a whole number from {lowest} to {highest}")
        return value

    def number(self, name: str, default: float, lowest: float, highest: float) -> float:
        value = self.take(name)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not lowest <= value <= highest:
            refuse(self._prefix + name, value, f"a number from {lowest:g} to {highest:g}")
        return float(value)

    def neutral(self, name: str, neutral: Sequence[Any], instead: str) -> None:
        """Refuse what is not honoured here, but for the values that ask for nothing."""
        value = self.take(name)
        if isinstance(value, bool) or (value is not None and value not in neutral):
            refuse(self._prefix + name, value, f"null, which is the default; {instead}")

    def end(self) -> None:
        """Refuse names that nothing has read."""
        if self._left:
            name = min(self._left)
            advice = ELSEWHERE.get(name, "leave it out (docs/serving.md lists them)")
            near = difflib.get_close_matches(name[:MAX_SHOWN], self._known, n=1)
            if near and name not in ELSEWHERE:
                advice = f"did you mean {self._prefix}{near[0]}?"
            place = f"{self._prefix}{name[:40]}"
            raise RequestError(f"{place!r} is not a parameter here; {advice}", param=place)
