"""The choice of tokens where several processes share a model: one of them makes it and tells the others.

Equal logits would give equal choices everywhere only on equal machines; and a stage of a pipeline that has no logits
has to be told. What is told is one small tensor a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron.inference.options import SamplingOptions
from megatron.inference.request import Request, TokenScore
from megatron.inference.runner import Runner
from megatron.inference.sampling import Draw, choose, score


class Chooser:
    """Chooses, or waits to be told. Every process makes the same calls."""

    def __init__(self, runner: Runner, vocab_size: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size

    def seen(self, request: Request) -> Tensor | None:
        """Mark the tokens of a prompt, bool [v], where tokens are chosen and there is a repetition penalty."""
        if request.options.repetition_penalty == 1.0 or not self._runner.chooses:
            return None
        seen = torch.zeros(self._runner.config.vocab_size, dtype=torch.bool)
        seen[list(request.prompt)] = True
        return seen.to(self._runner.cache.device)

    def choose(self, logits: Tensor | None, draws: Sequence[Draw]) -> list[TokenScore]:
        """Choose a token for each row of logits [r, v], given where `Runner.chooses`. Collective over all processes.

        Log-probabilities are given where a draw's options ask for them.
        """
        num_top = _num_top([draw.options for draw in draws])
        with torch.inference_mode():
            ids = values = None
            if self._runner.chooses:
                assert logits is not None
                ids = choose(logits, draws)
                values = _pack(logits, ids, num_top)
            told = self._tell(values, len(draws), num_top)
        return [_unpack(row, num_top, draw.options) for row, draw in zip(told, draws, strict=True)]

    def score_prompt(
        self, logits: Tensor | None, targets: Sequence[int], options: SamplingOptions
    ) -> tuple[TokenScore, ...]:
        """Score the tokens that follow those of the first rows of logits. Collective over all processes."""
        if not targets:
            return ()
        num_top = _num_top([options])
        with torch.inference_mode():
            values = None
            if self._runner.chooses:
                assert logits is not None
                ids = torch.tensor(targets, device=logits.device)
                values = _pack(logits[: len(targets)], ids, num_top)
            told = self._tell(values, len(targets), num_top)
        return tuple(_unpack(row, num_top, options) for row in told)

    def _tell(self, values: Tensor | None, num_rows: int, num_top: int | None) -> list[list[float]]:
        if values is None:
            width = 1 if num_top is None else 2 + 2 * num_top
            values = torch.empty(num_rows, width, dtype=torch.float64)
        told: list[list[float]] = self._runner.tell(values).tolist()
        return told


def _num_top(options: Sequence[SamplingOptions]) -> int | None:
    """Give how many likeliest tokens are asked for at most; None if nobody asks for log-probabilities."""
    asked = [one.logprobs for one in options if one.logprobs is not None]
    return max(asked) if asked else None


def _pack(logits: Tensor, ids: Tensor, num_top: int | None) -> Tensor:
    """Lay out what is told of each row, fp64 [r, w] on the CPU: token, log-probability, likeliest tokens, theirs."""
    # fp64 holds every id
    if num_top is None:
        return ids.unsqueeze(1).double().cpu()
    scores = score(logits, ids, num_top)
    columns = [ids.unsqueeze(1), scores.token.unsqueeze(1), scores.top_ids, scores.top]
    return torch.cat([column.double() for column in columns], dim=1).cpu()


def _unpack(row: list[float], num_top: int | None, options: SamplingOptions) -> TokenScore:
    token = int(row[0])
    if num_top is None or options.logprobs is None:
        return TokenScore(token, 0.0)
    likeliest = row[2 : 2 + options.logprobs]
    theirs = row[2 + num_top : 2 + num_top + options.logprobs]
    return TokenScore(token, row[1], tuple(zip(map(int, likeliest), theirs, strict=True)))
