"""From the body of POST /v1/completions to requests for the engine: everything is checked here, before anyone works.

Knows nothing of HTTP or torch.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron.errors import ConfigError
from megatron.inference.options import SamplingOptions, is_unicode
from megatron.inference.prompt import (
    Order,
    check_infilling,
    encode_text,
    infilling_ends,
    infilling_ids,
)
from megatron.inference.request import LESS, Request, too_long
from megatron.serving.error import RequestError
from megatron.serving.parameter import Parameters, read_object, refuse, shown
from megatron.tokenizer.interface import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_STOPS = 16  # OpenAI's are 4; HumanEval alone has 7
MAX_STOP_CHARACTERS = 256  # looked for after every token
MAX_LOGPROBS = 20
MAX_TEMPERATURE = 2.0  # OpenAI's
SMALLEST_TOP_P = 1e-6  # OpenAI allows 0, which keeps the likeliest token
FORMS = "a string, a list of strings, a list of token ids, or a list of such lists"


@dataclass(frozen=True)
class ServedModel:
    """What requests are checked against."""

    name: str
    tokenizer: Tokenizer
    num_positions: int
    max_samples: int  # of a request
    max_tokens: int  # of a request: prompts, and all that may be written
    order: Order = "psm"
    reads_sentinels: bool = False

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text of more than so many for each position is too long."""
        return max(len(self.tokenizer.token_bytes(id)) for id in range(self.tokenizer.vocab_size))


@dataclass(frozen=True)
class CompletionCall:
    """What a client asked for. requests: one for each prompt."""

    requests: tuple[Request, ...]
    num_samples: int  # of each prompt
    max_tokens: int  # 0: nothing is to be written; the engine writes one token, which is not told
    echoes: tuple[str, ...] | None  # prompts, where they are to stand before what is written
    gives_logprobs: bool
    streams: bool
    gives_usage: bool  # at the end of a stream

    @property
    def client(self) -> str:
        return self.requests[0].client

    @property
    def num_choices(self) -> int:
        return len(self.requests) * self.num_samples

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


@dataclass(frozen=True)
class _Filling:
    """How texts become ids."""

    suffix: str | None
    order: Order
    reads_sentinels: bool


def read_call(body: bytes, name: str, client: str, model: ServedModel) -> CompletionCall:
    """Parse and check a client's body; the engine's requests are called by name and number. Raises RequestError."""
    given = Parameters(read_object(body))
    _check_model(given.take("model"), model)
    prompt = given.take("prompt")
    filling = _Filling(
        given.text("suffix", None),
        given.choice("fim_order", model.order, ("psm", "spm")),  # type: ignore[arg-type]
        given.flag("sentinels", model.reads_sentinels),
    )
    max_tokens = given.integer("max_tokens", DEFAULT_MAX_TOKENS, 0, model.num_positions - 1)
    num_samples = given.integer("n", 1, 1, model.max_samples)
    options = _read_options(given, max_tokens, model)
    given.text("user", None)
    echo = given.flag("echo", False)
    streams, gives_usage = _read_stream(given)
    _refuse_the_rest(given, num_samples)
    gives_logprobs = options.logprobs is not None
    if echo and gives_logprobs:
        options = SamplingOptions(**{**vars(options), "prompt_logprobs": True})
        if streams or filling.suffix is not None:
            raise RequestError(
                "echo with logprobs can be had neither with stream nor with suffix; leave one out",
                param="echo",
            )
    prompts = _read_prompts(prompt, filling, model, num_samples, max_tokens)
    ends = frozenset() if filling.suffix is None else infilling_ends(model.tokenizer)
    _check_sizes(prompts, num_samples, max_tokens, model)
    requests = tuple(
        Request(f"{name}-{number}", tuple(ids), options, num_samples, ends, client)
        for number, (ids, _) in enumerate(prompts)
    )
    for request in requests:
        try:  # the engine's own view: what it refuses would be an error of all that is in work
            request.check(model.tokenizer.vocab_size, model.num_positions)
        except ConfigError as error:
            raise RequestError(str(error)) from None
    echoes = tuple(_spelled(ids, text, model) for ids, text in prompts) if echo else None
    return CompletionCall(
        requests, num_samples, max_tokens, echoes, gives_logprobs, streams, gives_usage
    )


def _check_model(name: Any, model: ServedModel) -> None:
    if name is not None and name != model.name:
        raise RequestError(
            f"model is {shown(name)}; here is {model.name!r} only",
            status=404,
            param="model",
            code="model_not_found",
        )


def _read_options(given: Parameters, max_tokens: int, model: ServedModel) -> SamplingOptions:
    logprobs = given.integer("logprobs", -1, 0, min(MAX_LOGPROBS, model.tokenizer.vocab_size))
    seed = given.integer("seed", -1, -(2**63), 2**63 - 1)
    return SamplingOptions(
        max_new_tokens=max(max_tokens, 1),
        temperature=given.number("temperature", 1.0, 0.0, MAX_TEMPERATURE),
        top_k=given.integer("top_k", 0, 0, 2**31 - 1),
        top_p=max(given.number("top_p", 1.0, 0.0, 1.0), SMALLEST_TOP_P),
        repetition_penalty=given.number("repetition_penalty", 1.0, 0.01, 100.0),
        # nobody asked for the same text twice
        seed=secrets.randbits(63) if seed == -1 else seed,
        stop=_read_stops(given.take("stop")),
        logprobs=None if logprobs == -1 else logprobs,
        ignore_eod=given.flag("ignore_eos", False),
    )


def _read_stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    is_right = (
        isinstance(stops, list)
        and len(stops) <= MAX_STOPS
        and all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops)
    )
    if not is_right:
        refuse(
            "stop",
            value,
            f"a string, or up to {MAX_STOPS}, each of 1 to {MAX_STOP_CHARACTERS} characters",
        )
    return tuple(stops)


def _read_stream(given: Parameters) -> tuple[bool, bool]:
    streams = given.flag("stream", False)
    value = given.take("stream_options")
    if value is None:
        return streams, False
    if not isinstance(value, dict) or not streams:
        refuse("stream_options", value, 'with "stream": true an object, else null')
    options = Parameters(value, "stream_options.")
    gives_usage = options.flag("include_usage", False)
    options.flag("include_obfuscation", False)  # hides sizes from a network; a reverse proxy may
    options.end()
    return streams, gives_usage


def _refuse_the_rest(given: Parameters, num_samples: int) -> None:
    """Take what asks for nothing, and refuse what nothing here does."""
    given.neutral("best_of", [num_samples], "equal to n is allowed too: all samples are given")
    given.neutral("logit_bias", [{}], "use stop, top_k or top_p")
    for name in ("presence_penalty", "frequency_penalty"):
        given.neutral(name, [0], "0 is allowed too; use repetition_penalty")
    given.end()


def _read_prompts(
    value: Any, filling: _Filling, model: ServedModel, num_samples: int, max_tokens: int
) -> list[tuple[list[int], str | None]]:
    """Give the ids of each prompt, and its text where it was one."""
    prompts = value if isinstance(value, list) and not _is_ids(value) else [value]
    if (
        not prompts
        or value == []
        or not all(isinstance(one, str) or _is_ids(one) for one in prompts)
    ):
        refuse("prompt", value, f"{FORMS}, none of them empty")
    if len(prompts) * num_samples > model.max_samples:
        raise RequestError(
            f"{len(prompts)} prompts with n {num_samples} are {len(prompts) * num_samples} samples; allowed in a "
            f"request: {model.max_samples}; send several requests",
            param="prompt",
        )
    if filling.suffix is not None:
        try:
            check_infilling(model.tokenizer)
        except ConfigError as error:
            raise RequestError(f"suffix: {error}", param="suffix") from None
    return [_encode(one, filling, model, max_tokens) for one in prompts]


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )


def _encode(
    prompt: str | list[int], filling: _Filling, model: ServedModel, max_tokens: int
) -> tuple[list[int], str | None]:
    tokenizer = model.tokenizer
    if isinstance(prompt, list):
        if filling.suffix is not None:
            raise RequestError("suffix needs prompts that are strings", param="suffix")
        bad = next((id for id in prompt if not 0 <= id < tokenizer.vocab_size), None)
        if bad is not None:
            refuse("prompt", bad, f"ids from 0 to {tokenizer.vocab_size - 1}")
        return prompt, None
    text = prompt + (filling.suffix or "")
    if not is_unicode(text):
        refuse("prompt", text, "Unicode text")
    if len(text.encode()) > model.num_positions * model.longest_token:
        raise _too_long(f"more than {model.num_positions}", max_tokens, model)
    if filling.suffix is not None:
        return infilling_ids(tokenizer, prompt, filling.suffix, filling.order), prompt
    ids = encode_text(tokenizer, prompt, reads_sentinels=filling.reads_sentinels)
    return ids or [tokenizer.eod], prompt  # a text from its beginning: after the end of another


def _check_sizes(
    prompts: list[tuple[list[int], str | None]],
    num_samples: int,
    max_tokens: int,
    model: ServedModel,
) -> None:
    for ids, _ in prompts:
        if len(ids) + max(max_tokens, 1) > model.num_positions:
            raise _too_long(len(ids), max_tokens, model)
    total = sum(len(ids) + num_samples * max_tokens for ids, _ in prompts)
    if total > model.max_tokens:
        raise RequestError(
            f"prompts and n x max_tokens for each are {total} tokens; allowed in a request: {model.max_tokens}; "
            f"send several requests or give a smaller max_tokens",
            param="max_tokens",
        )


def _too_long(size: int | str, max_tokens: int, model: ServedModel) -> RequestError:
    advice = LESS if max_tokens else "shorten it: there has to be room for one token more"
    return RequestError(
        too_long(model.num_positions, size, max_tokens, "max_tokens", advice),
        param="prompt",
        code="context_length_exceeded",
    )


def _spelled(ids: list[int], text: str | None, model: ServedModel) -> str:
    return model.tokenizer.detokenize(ids) if text is None else text
