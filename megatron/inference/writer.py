"""How completions leave tools/generate.py: as text for people, piece by piece if there is one, or as JSON lines.

Knows nothing of torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from megatron.inference.job import Job
from megatron.inference.request import Completion, TokenScore, Update
from megatron.tokenizer.interface import Tokenizer

Write = Callable[[Job, Update], None]


def json_writer(
    file: TextIO,
    tokenizer: Tokenizer,
    more: Callable[[Completion], Mapping[str, Any]] = lambda completion: {},
) -> Write:
    """Write a line for each completion as soon as it is finished, with what more there is to say of it."""

    def write(job: Job, update: Update) -> None:
        if update.completion is not None:
            values = {**to_json(job, update.completion, tokenizer), **more(update.completion)}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
            file.flush()

    return write


def text_writer(file: TextIO, *, streams: bool, echoes: bool) -> Write:
    """Write what was written.

    streams: there is one completion, of which every piece is written at once; else each under a heading when it is
    finished. echoes: with its prompt, in the place of which a middle stands.
    """

    def write(job: Job, update: Update) -> None:
        completion = update.completion
        if not streams:
            if completion is None:
                return
            words = f"{completion.finish_reason}, {len(completion.token_ids)} tokens"
            file.write(f"--- {job.name}, sample {completion.sample + 1}: {words}\n")
            file.write(job.prefix * echoes + completion.text + (job.suffix or "") * echoes + "\n")
            file.flush()
            return
        file.write(update.text)
        if completion is not None:
            end = (job.suffix or "") * echoes
            text = job.prefix * echoes + completion.text + end
            file.write(end + ("" if text.endswith("\n") else "\n"))
        file.flush()

    return write


def to_json(job: Job, completion: Completion, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """Give a completion as JSON values."""
    result: dict[str, Any] = {
        "id": job.name,
        "sample": completion.sample,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "num_prompt_tokens": completion.num_prompt_tokens,
        "num_tokens": len(completion.token_ids),
    }
    if completion.scores:
        result["logprobs"] = [_score(score, tokenizer) for score in completion.scores]
    if completion.prompt_scores:
        result["prompt_logprobs"] = [_score(one, tokenizer) for one in completion.prompt_scores]
    return result


def _score(score: TokenScore, tokenizer: Tokenizer) -> dict[str, Any]:
    """Spell a token, parts of characters as U+FFFD; the likeliest ones in its place as (id, text, logprob)."""
    likeliest = [(token, tokenizer.detokenize([token]), logprob) for token, logprob in score.top]
    named = {
        "token": score.token,
        "text": tokenizer.detokenize([score.token]),
        "logprob": score.logprob,
    }
    return named | ({"top": likeliest} if likeliest else {})
