"""Scores of a text against the forward pass of training."""

import numpy as np
import pytest
import torch

from megatron.inference.token_scorer import TokenScorer
from tests.inference.models import (
    ARCHITECTURES,
    TOLERANCE,
    FullForward,
    make_model,
    open_engine,
    random_prompt,
)


def check_scores(rank, path):
    reference = FullForward(path)
    scorer = TokenScorer(open_engine(path)._runner, chunk_tokens=16)
    for size in (
        41,
        1,
        17,
        64,
    ):  # a longer text first: what it left in the cache is no one's context
        ids = random_prompt(size)
        expected = reference.logits(ids)[:-1].log_softmax(dim=-1)
        expected = expected.gather(1, torch.tensor(ids[1:], dtype=torch.int64).unsqueeze(1))
        found = scorer.log_probabilities(ids)
        assert found.dtype == np.float64 and found.shape == (size - 1,)
        assert np.allclose(found, expected.squeeze(1).numpy(), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_token_is_scored_by_those_before_it(world, tmp_path, kind):
    world(1).run(check_scores, make_model(tmp_path / "run", **ARCHITECTURES[kind]))
