"""What clients read: OpenAI's text_completion objects, from what the engine gives. Knows nothing of HTTP."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence
from typing import Any

from megatron.inference.request import Completion, FinishReason, TokenScore, Update
from megatron.serving.completion_call import CompletionCall
from megatron.tokenizer.interface import Tokenizer

REASONS: dict[FinishReason, str] = {"end_of_text": "stop", "stop": "stop", "length": "length"}
FIELDS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


class Answer:
    """One call's choices, while they are written."""

    def __init__(self, name: str, model: str, call: CompletionCall, tokenizer: Tokenizer) -> None:
        self._call = call
        self._tokenizer = tokenizer
        self._head = {
            "id": name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._prompts = {request.name: place for place, request in enumerate(call.requests)}
        self._completions: dict[int, Completion] = {}
        self._places: dict[int, _Place] = {}  # in the texts of a stream, by choice
        self.num_tokens = 0

    @property
    def gives_usage(self) -> bool:
        return self._call.gives_usage

    @property
    def is_complete(self) -> bool:
        return len(self._completions) == self._call.num_choices

    def add(self, update: Update) -> None:
        """Take note of what was written."""
        self.num_tokens += update.token is not None and self._call.max_tokens > 0
        if update.completion is not None:
            self._completions[self._index(update)] = update.completion

    def whole(self) -> dict[str, Any]:
        """Give the answer to a call that is complete."""
        choices = [self._choice(index) for index in range(self._call.num_choices)]
        return {**self._head, "choices": choices, "usage": self.usage()}

    def text(self, index: int) -> str:
        """Give what was written for a choice that is finished."""
        return self._completions[index].text if self._call.max_tokens else ""

    def usage(self) -> dict[str, int]:
        """Count tokens; a prompt of several samples is read, and counted, once."""
        num_prompt_tokens = self._call.num_prompt_tokens
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": num_prompt_tokens + self.num_tokens,
        }

    def chunk(self, update: Update) -> dict[str, Any]:
        """Give what a step added to a choice, for a stream."""
        index = self._index(update)
        text = update.text if self._call.max_tokens else ""
        if index not in self._places:
            echo = self._echo(index)
            self._places[index] = _Place(len(echo))
            text = echo + text
        scores = [update.score] if update.score is not None and self._call.max_tokens else []
        logprobs = None
        if self._call.gives_logprobs:
            logprobs = self._logprobs(scores, self._places[index])
        reason = None if update.completion is None else self._reason(update.completion)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._chunk([choice], None)

    def usage_chunk(self) -> dict[str, Any]:
        """Give the last chunk of a stream that was asked for usage."""
        return self._chunk([], self.usage())

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        return {**self._head, "choices": choices} | (
            {"usage": usage} if self._call.gives_usage else {}
        )

    def _index(self, update: Update) -> int:
        return self._prompts[update.request] * self._call.num_samples + update.sample

    def _echo(self, index: int) -> str:
        echoes = self._call.echoes
        return "" if echoes is None else echoes[index // self._call.num_samples]

    def _choice(self, index: int) -> dict[str, Any]:
        completion, call = self._completions[index], self._call
        echo, text = self._echo(index), completion.text if call.max_tokens else ""
        logprobs = None
        if call.gives_logprobs:
            place, listed = _Place(0), []
            if call.echoes is not None:
                first = call.requests[index // call.num_samples].prompt[0]
                read = (None, *completion.prompt_scores)
                listed.append(self._logprobs(read, place, first, spells_sentinels=bool(echo)))
            if call.max_tokens:
                listed.append(self._logprobs(completion.scores, place))
            logprobs = {name: [x for part in listed for x in part[name]] for name in FIELDS}
        reason = self._reason(completion)
        return {"index": index, "text": echo + text, "logprobs": logprobs, "finish_reason": reason}

    def _reason(self, completion: Completion) -> str:
        # where nothing was to be written, the token that was ends nothing
        return REASONS[completion.finish_reason] if self._call.max_tokens else "length"

    def _logprobs(
        self,
        scores: Sequence[TokenScore | None],
        place: _Place,
        first: int = 0,
        *,
        spells_sentinels: bool = False,
    ) -> dict[str, list[Any]]:
        """List tokens from a place in the text on; None is the first of a prompt, which nothing predicts."""
        tokens = [first if score is None else score.token for score in scores]
        offsets = []
        for token in tokens:
            offsets.append(place.offset)
            data = self._tokenizer.token_bytes(token)
            if not data and spells_sentinels:
                data = self._tokenizer.detokenize([token]).encode()
            place.move(data)
        return {
            "tokens": [self._spell(token) for token in tokens],
            "token_logprobs": [None if score is None else score.logprob for score in scores],
            "top_logprobs": [self._top(score) for score in scores],
            "text_offset": offsets,
        }

    def _top(self, score: TokenScore | None) -> dict[str, float] | None:
        """Name the likeliest tokens and, as OpenAI does, the one that was chosen."""
        if score is None:
            return None
        return {
            self._spell(id): logprob for id, logprob in (*score.top, (score.token, score.logprob))
        }

    def _spell(self, token: int) -> str:
        """Spell a token; one that is part of a character by its bytes, as OpenAI does."""
        data = self._tokenizer.token_bytes(token)
        if not data:
            return self._tokenizer.detokenize([token])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _Place:
    """Where in a text the next token begins."""

    def __init__(self, offset: int) -> None:
        self.offset = offset  # in whole characters
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def move(self, data: bytes) -> None:
        self.offset += len(self._decoder.decode(data))
