"""pass@k against its definition, and its interval."""

import itertools

import pytest

from megatron.errors import ConfigError
from megatron.evaluation.pass_at_k import estimate, pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_estimator_is_the_share_of_all_subsets_with_a_right_one(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        samples = [place < num_correct for place in range(num_samples)]
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(samples, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(share, abs=1e-12)


def test_many_samples_lose_no_precision() -> None:
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5, abs=1e-12)
    assert pass_at_k(200, 61, 1) == pytest.approx(61 / 200, abs=1e-12)


def test_more_than_there_are_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match="pass@10 of 5 samples"):
        pass_at_k(5, 5, 10)


def test_interval_holds_the_mean_and_narrows_with_tasks() -> None:
    few = estimate([(10, 0), (10, 10)] * 10, 1)
    many = estimate([(10, 0), (10, 10)] * 1000, 1)
    assert few.value == many.value == 0.5
    assert few.low < 0.4 and few.high > 0.6
    # the normal approximation: 1.96 * 0.5 / sqrt(2000)
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.1)
    assert estimate([(10, 0), (10, 10)] * 10, 1) == few
