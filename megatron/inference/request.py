"""What an engine is asked for, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron.errors import ConfigError
from megatron.inference.options import SamplingOptions

LESS = "shorten one of them"
FinishReason = Literal["end_of_text", "stop", "length", "cancelled", "withheld"]


def too_long(
    num_positions: int,
    num_prompt: int | str,
    num_new: int,
    option: str = "--max-new-tokens",
    advice: str = LESS,
) -> str:
    """Say that a prompt and what is to be written do not fit into a model, in the one wording that all tools have.

    It begins as OpenAI's does, by which programs know it. option: that says how much is to be written.
    """
    return (
        f"this model's maximum context length is {num_positions} tokens; the prompt has {num_prompt}, and {option} is "
        f"{num_new}; {advice}"
    )


@dataclass(frozen=True)
class Request:
    """A prompt to continue."""

    name: str  # tells it from others in work
    prompt: tuple[int, ...]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    num_samples: int = 1
    end_ids: frozenset[int] = frozenset()  # tokens that end a completion besides the end of text
    client: str = ""  # who asks: clients take turns

    def check(self, vocab_size: int, num_positions: int) -> None:
        """Raise ConfigError for what a model with so many ids and positions cannot serve."""
        options, size = self.options, len(self.prompt)
        options.check()
        if size == 0:
            raise ConfigError("the prompt is empty; give a token or more, such as the end of text")
        if self.num_samples < 1:
            raise ConfigError(f"{self.num_samples} samples are asked for; allowed: 1 or more")
        bad = [number for number in self.prompt if not 0 <= number < vocab_size]
        if bad:
            raise ConfigError(
                f"the prompt has id {bad[0]} and the tokenizer ids from 0 to {vocab_size - 1}"
            )
        if size + options.max_new_tokens > num_positions:
            raise ConfigError(too_long(num_positions, size, options.max_new_tokens))


@dataclass(frozen=True)
class TokenScore:
    """A token's log-probability by the model, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished sample of a request."""

    request: str
    sample: int
    text: str
    # all that were chosen, those of the stop text and the end of text included
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    scores: tuple[TokenScore, ...] = ()  # of token_ids
    prompt_scores: tuple[TokenScore, ...] = ()  # of the prompt from its second token on


@dataclass(frozen=True)
class Update:
    """What a step added to a sample."""

    request: str
    sample: int
    text: str  # that cannot change any more: no end that may become a stop text
    token: int | None  # None: it ended before its first
    completion: Completion | None = None  # when it is finished
    score: TokenScore | None = None  # of the token that this step chose
