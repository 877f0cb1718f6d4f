"""What an answer owes: its choices are looked up in the training data before a client reads them.

Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from megatron.attribution.review import Reviewer
from megatron.errors import DataError
from megatron.inference.request import Update
from megatron.serving.completion_answer import Answer
from megatron.serving.error import RequestError

WITHHELD = "content_filter"  # OpenAI's reason for what is left out


class Reviews:
    """Reviews one answer, whole or chunk by chunk; lets all pass where nothing is to be looked up."""

    def __init__(self, reviewer: Reviewer | None, answer: Answer) -> None:
        self._reviewer = reviewer
        self._answer = answer
        self._held: dict[int, list[dict[str, Any]]] = defaultdict(list)  # chunks, by choice

    async def whole(self) -> dict[str, Any]:
        """Give an answer that is complete."""
        values = self._answer.whole()
        for choice in values["choices"]:
            await self._review(choice, self._answer.text(choice["index"]), keeps=False)
        return values

    async def chunks(self, updates: Sequence[Update]) -> list[dict[str, Any]]:
        """Give what a client may read now of what a step added."""
        ready: list[dict[str, Any]] = []
        for update in updates:
            chunk = self._answer.chunk(update)
            (choice,) = chunk["choices"]
            held = self._held[choice["index"]]
            held.append(chunk)
            if update.completion is not None:
                text = self._answer.text(choice["index"])
                if await self._review(choice, text, keeps=True):
                    del held[:-1]
            elif self._reviewer is not None and self._reviewer.withholds:
                continue
            ready += held
            held.clear()
        return ready

    async def _review(self, choice: dict[str, Any], text: str, *, keeps: bool) -> bool:
        """Add to a choice what its text owes, or take the text out; say whether that was done.

        keeps: an echo, which is not in text, stands in other chunks.
        """
        if self._reviewer is None:
            return False
        try:
            review = await run_in_threadpool(self._reviewer, text)
        except DataError as error:  # a normaliser that changes this text, a damaged index
            raise RequestError(
                f"what was written cannot be looked up in the training data: {error}", status=500
            ) from None
        choice["attribution"] = review.answer
        if not (self._reviewer.withholds and review.is_too_much):
            return False
        echo = "" if keeps else choice["text"].removesuffix(text)
        choice |= {"text": echo, "logprobs": None, "finish_reason": WITHHELD}
        return True
