"""From logits to tokens: penalties, temperature, top-k, nucleus, and draws that depend on nothing but their coordinates.

Transforms and their order are those of transformers' logits processors; a row is untouched by others in its batch. Token
t of a sample is drawn by one uniform number that is a function of (seed, prompt, sample, t), so a request gives the same
text in any company, layout and order of work, as far as its logits are the same. Those differ by rounding, which in fp32
changes a draw about once in a million tokens. Log-probabilities are the model's own: before all transforms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.errors import CheckpointError
from megatron.inference.options import SamplingOptions
from megatron.kernels.prediction import highest
from megatron.parallel.random import derive_key

NUM_CANDIDATES = 1024  # likeliest tokens among which a nucleus is looked for before all are sorted


@dataclass(frozen=True)
class Draw:
    """One token to be chosen: for whom, and the how-manieth of its completion."""

    options: SamplingOptions
    key: int  # of the sample: `sample_key`
    index: int
    # bool [v]: tokens of prompt and completion, for a repetition penalty
    seen: Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of tokens, and the likeliest in their places; the last two dims as wide as any row asked."""

    token: Tensor  # fp32 [r]
    top_ids: Tensor  # int64 [r, n]
    top: Tensor  # fp32 [r, n]


def choose(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Choose a token for each row of logits [r, v]: int64 [r]. CheckpointError if they are no numbers."""
    scores = logits.float()
    penalised = [row for row, draw in enumerate(draws) if draw.seen is not None]
    if penalised:
        scores = scores.clone() if scores is logits else scores
        for row in penalised:
            seen = draws[row].seen
            assert seen is not None
            scores[row] = penalise(scores[row], seen, draws[row].options.repetition_penalty)
    best, ids = highest(scores)
    if not all(map(math.isfinite, best.tolist())):
        raise CheckpointError(
            "the model gave logits that are no numbers; load it with --dtype fp32 or bf16, or check its weights"
        )
    drawn = [row for row, draw in enumerate(draws) if draw.options.temperature > 0.0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        ids[rows] = _draw(scores[rows], [draws[row] for row in drawn])
    return ids


def score(logits: Tensor, ids: Tensor, num_top: int) -> Scores:
    """Give the log-probabilities of ids int64 [r] by logits [r, v], and the num_top likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    top, top_ids = logprobs.topk(num_top, dim=-1)
    return Scores(logprobs.gather(1, ids.unsqueeze(1)).squeeze(1), top_ids, top)


def sample_key(seed: int, prompt: Sequence[int], sample: int) -> int:
    """Give what tells a sample's draws from all others'."""
    return derive_key(seed, "sample", sample, *prompt)


def uniform(key: int, index: int) -> float:
    """Give the number in [0, 1) by which token index of a sample is drawn."""
    return (derive_key(key, "token", index) & (1 << 53) - 1) / (1 << 53)


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive scores [v] of seen tokens by penalty and multiply the negative ones (arXiv 1909.05858)."""
    weakened = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(seen, weakened, scores)


def _draw(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Draw a token of each row of scores fp32 [r, v]: int64 [r]."""
    options = [draw.options for draw in draws]
    device = scores.device
    # as good as 0, and still a number of fp32
    temperatures = torch.tensor([max(one.temperature, 1e-6) for one in options], device=device)
    scores = scores / temperatures.unsqueeze(1)
    scores = keep_likeliest(scores, [one.top_k for one in options], [one.top_p for one in options])
    # in the order of ids, which no rounding changes, and in fp64, so that it adds none
    sums = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    numbers = [uniform(draw.key, draw.index) for draw in draws]
    total = sums[:, -1]
    places = torch.tensor(numbers, dtype=torch.float64, device=device) * total
    places = torch.minimum(places, torch.nextafter(total, torch.zeros_like(total)))
    # the first token whose sum is greater: one whose probability is not 0
    return torch.searchsorted(sums, places.unsqueeze(1), right=True).squeeze(1)


def keep_likeliest(scores: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Set all scores [r, v] to -inf but those of a row's top_k (0: all) and, of these, its nucleus top_p.

    Tokens that score the same as the last one kept are kept too, so that no order among equals matters.
    """
    num_tokens = scores.size(1)
    has_nucleus = any(p < 1.0 for p in top_p)
    needed = [
        min(k, num_tokens) if k else (NUM_CANDIDATES if p < 1.0 else 0)
        for k, p in zip(top_k, top_p, strict=True)
    ]
    num_candidates = min(max(needed), num_tokens)
    if num_candidates == 0:
        return scores
    best = scores.topk(num_candidates, dim=-1).values  # [r, c], falling
    counts = torch.tensor([min(k, num_tokens) for k in top_k], device=scores.device)
    lowest = best.gather(1, (counts - 1).clamp_(min=0).unsqueeze(1))
    lowest = lowest.masked_fill((counts == 0).unsqueeze(1), float("-inf"))  # [r, 1]
    scores = scores.masked_fill(scores < lowest, float("-inf"))
    if not has_nucleus:
        return scores
    share = torch.tensor(top_p, dtype=torch.float64, device=scores.device).unsqueeze(1)
    total = scores.double().logsumexp(dim=-1, keepdim=True)
    while True:
        probabilities = (best.double() - total).exp().masked_fill(best < lowest, 0.0)
        sums = probabilities.cumsum(dim=-1)
        if best.size(1) == num_tokens or bool(
            ((sums[:, -1:] >= share) | (counts > 0).unsqueeze(1) | (share == 1)).all()
        ):
            break
        best = scores.sort(dim=-1, descending=True).values
    kept = (sums - probabilities < share).sum(dim=-1, keepdim=True)
    threshold = best.gather(1, kept - 1).masked_fill(share == 1.0, float("-inf"))
    return scores.masked_fill(scores < threshold, float("-inf"))
