"""Choosing tokens: the transforms of transformers, and draws that follow the probabilities they leave."""

import math

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from megatron.errors import CheckpointError
from megatron.inference.options import SamplingOptions
from megatron.inference.sampling import (
    NUM_CANDIDATES,
    Draw,
    choose,
    keep_likeliest,
    penalise,
    sample_key,
    score,
    uniform,
)

NUM_TOKENS = 3 * NUM_CANDIDATES


def random_logits(num_rows: int, num_tokens: int = NUM_TOKENS, scale: float = 3.0):
    return scale * torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(1))


def by_transformers(scores, top_k, top_p):
    """Each row by itself, as its options ask for."""
    rows = []
    for row, k, p in zip(scores, top_k, top_p, strict=True):
        row = row[None]
        row = TopKLogitsWarper(k)(None, row) if k else row
        rows.append(TopPLogitsWarper(p)(None, row) if p < 1.0 else row)
    return torch.cat(rows)


@pytest.mark.parametrize("scale", [0.01, 3.0])  # nearly even: a nucleus beyond the candidates
@pytest.mark.parametrize(
    "top_k, top_p",
    [
        ([0, 0, 0], [1.0, 1.0, 1.0]),
        ([5, 0, 1], [1.0, 1.0, 1.0]),
        ([0, 0, 0], [0.9, 0.2, 1.0]),
        ([50, 0, 5000], [0.7, 0.95, 0.5]),
        ([0, 7, 2], [0.999, 0.01, 1.0]),
    ],
)
def test_top_k_and_nucleus_keep_what_transformers_keeps(top_k, top_p, scale):
    scores = random_logits(3, scale=scale)
    torch.testing.assert_close(
        keep_likeliest(scores, top_k, top_p),
        by_transformers(scores, top_k, top_p),
        rtol=0,
        atol=0,
    )


def test_equal_scores_are_kept_together():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    kept = keep_likeliest(scores, [2], [1.0]).isfinite()
    assert kept.tolist() == [[False, True, True, True, True, False]]
    kept = keep_likeliest(scores, [0], [0.6]).isfinite()
    assert kept.tolist() == [[False, True, True, True, True, False]]


def test_repetition_penalty_is_that_of_transformers():
    scores = random_logits(1)
    ids = torch.tensor([[3, 9, 9, 100]])
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone())
    seen = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    seen[ids[0]] = True
    torch.testing.assert_close(penalise(scores[0], seen, 1.3), expected[0], rtol=0, atol=0)


def test_draws_follow_the_probabilities_after_all_transforms():
    options = SamplingOptions(temperature=0.7, top_k=6, top_p=0.9, repetition_penalty=1.5, seed=3)
    scores = random_logits(1, 12, scale=1.5)
    seen = torch.arange(12) < 3
    ids = torch.arange(3)[None]
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, scores.clone())
    for transform in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(6), TopPLogitsWarper(0.9)):
        expected = transform(ids, expected)
    expected = expected.softmax(dim=-1)[0]

    num_draws = 20_000
    draws = [
        Draw(options, sample_key(3, (1, 2), n % 100), n // 100, seen) for n in range(num_draws)
    ]
    chosen = choose(scores.expand(num_draws, -1), draws)
    shares = chosen.bincount(minlength=12) / num_draws
    assert not shares[expected == 0].any()
    errors = (shares - expected).abs() / (expected * (1 - expected) / num_draws).sqrt()
    assert errors[expected > 0].max() < 4.5  # standard deviations


def test_a_row_is_chosen_alone_as_among_others():
    scores = random_logits(7)
    seen = torch.arange(NUM_TOKENS) % 2 == 0
    draws = [
        Draw(SamplingOptions(), 1, 0),
        Draw(SamplingOptions(temperature=1.0), 2, 5),
        Draw(SamplingOptions(temperature=0.5, top_p=0.3), 3, 5),
        Draw(SamplingOptions(temperature=2.0, top_k=3), 4, 5),
        Draw(SamplingOptions(repetition_penalty=2.0), 5, 5, seen),
        Draw(SamplingOptions(temperature=9.0, top_p=0.999), 6, 5),
        Draw(SamplingOptions(temperature=1e-300), 7, 5),
    ]
    before = scores.clone()
    together = choose(scores, draws).tolist()
    assert together == [int(choose(scores[n : n + 1], draws[n : n + 1])) for n in range(7)]
    assert together[6] == int(scores[6].argmax())
    assert torch.equal(scores, before)


def test_draws_are_told_apart_by_seed_prompt_sample_and_place():
    keys = {sample_key(*of) for of in [(0, (1,), 0), (1, (1,), 0), (0, (2,), 0), (0, (1,), 1)]}
    numbers = {uniform(key, index) for key in keys for index in (0, 1)}
    assert len(numbers) == 8 and all(0 <= number < 1 for number in numbers)
    assert uniform(7, 1) == uniform(7, 1)


def test_scores_are_log_probabilities_of_the_model():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])) + 4
    scores = score(logits, torch.tensor([1, 1]), 2)
    torch.testing.assert_close(scores.token, torch.tensor([0.2, 0.8]).log())
    assert scores.top_ids[0].tolist() == [0, 2]
    torch.testing.assert_close(scores.top[0], torch.tensor([0.5, 0.3]).log())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(temperature):
    logits = random_logits(2)
    logits[1, 5] = math.nan
    draws = [Draw(SamplingOptions(temperature=temperature), 1, 0)] * 2
    with pytest.raises(CheckpointError, match="no numbers"):
        choose(logits, draws)
