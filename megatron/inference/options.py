"""How a completion is written: options of a request, from flags or from JSON. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.errors import ConfigError
from megatron.option_field import check_bounds, option, require

MAX_LOGPROBS = 100


def is_unicode(text: str) -> bool:
    """Say whether a text has a UTF-8: what was bytes of something else, or half a surrogate pair, has none."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True)
class SamplingOptions:
    """How the tokens of a completion are chosen, and when it ends."""

    max_new_tokens: int = option(256, "tokens to write at most", minimum=1)
    temperature: float = option(0.0, "divides the logits; 0 takes the likeliest token", minimum=0.0)
    top_k: int = option(0, "draw among so many likeliest tokens; 0: all", minimum=0)
    top_p: float = option(
        1.0,
        "draw among the likeliest tokens that together have this probability",
        above=0.0,
        maximum=1.0,
    )
    repetition_penalty: float = option(
        1.0,
        "weakens tokens that prompt or completion have already; 1: does not",
        minimum=0.01,
        maximum=100.0,
    )
    seed: int = option(0, "of the draws: the same request with the same seed gives the same text")
    stop: tuple[str, ...] = option((), "texts that end a completion, which is cut before them")
    logprobs: int | None = option(
        None,
        "give the log-probability of each token and of so many likeliest",
        minimum=0,
        maximum=MAX_LOGPROBS,
    )
    prompt_logprobs: bool = option(False, "with logprobs: those of the prompt's tokens, too")
    ignore_eod: bool = option(False, "write on after the end of the text")

    def check(self) -> None:
        """Raise ConfigError for a number outside its bounds, an empty stop text, or options that need others."""
        check_bounds(self)
        require(all(self.stop), "--stop is empty: every text holds it; give the text that ends")
        for stop in self.stop:
            require(is_unicode(stop), f"--stop {stop!r} is not Unicode text, which no model writes")
        require(
            not self.prompt_logprobs or self.logprobs is not None,
            "--prompt-logprobs needs --logprobs N, the number of likeliest tokens (0: none)",
        )

    def changed(self, values: Mapping[str, Any], where: str) -> SamplingOptions:
        """Give options some of which are JSON values. Raises ConfigError, which says where, for what cannot be."""
        hints = typing.get_type_hints(SamplingOptions)
        changes: dict[str, Any] = {}
        for name, value in values.items():
            require(
                name in hints,
                f"{where}: {name} is not an option; options are {', '.join(hints)}",
            )
            accepted = _types(hints[name])
            is_right = isinstance(value, accepted) and (
                bool in accepted or not isinstance(value, bool)
            )
            if name == "stop":
                value = (value,) if isinstance(value, str) else value
                is_right = isinstance(value, (list, tuple)) and all(
                    isinstance(x, str) for x in value
                )
                value = tuple(value) if is_right else value
            require(is_right, f"{where}: {name} is {value!r}, which is of another type")
            changes[name] = value
        changed = dataclasses.replace(self, **changes)
        try:
            changed.check()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return changed


def _types(hint: Any) -> tuple[type, ...]:
    """Give what a JSON value of a field may be."""
    if hint is float:
        return (int, float)
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)
    return (typing.get_origin(hint) or hint,)
