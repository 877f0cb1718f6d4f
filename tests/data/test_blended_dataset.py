"""A blend keeps its weights at every prefix, for ever, and any sample is found without those before it."""

import pickle
import random
from fractions import Fraction

import numpy as np
import pytest

from megatron.data import _helpers
from megatron.data.blended_dataset import MAX_BLOCK, BlendedDataset
from megatron.errors import ConfigError


class Numbers:
    """A dataset whose sample is its own number."""

    def __init__(self, name="numbers"):
        self.name = name

    def __getitem__(self, index):
        return self.name, index


def blend(weights):
    return BlendedDataset([Numbers(str(i)) for i in range(len(weights))], weights, "train")


def check_prefixes(weights, samples, *, start=0, before=None):
    """Every source is less than one sample from its share after each sample; numbers within it are in order."""
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    counts = list(before or [0] * len(weights))
    for number, (source, index) in enumerate(samples, start):
        assert index == counts[source]
        counts[source] += 1
        for share, count in zip(shares, counts, strict=True):
            assert abs(count - share * (number + 1)) < 1


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.5, 0.5],
        [Fraction("0.3"), Fraction("0.7")],
        [0.1, 0.2, 0.7],
        [1, 1, 1],
        [5, 3, 1, 1, 1, 1],
        [0.9, 0.02, 0.02, 0.02, 0.04],
        [1000, 1, 1, 2, 3],
        [2**0.5, 3**0.5, 5**0.5, 7**0.5, 0.01],
    ],
)
def test_weights_hold_within_one_sample_at_every_prefix(weights):
    dataset = blend(weights)
    check_prefixes(weights, [dataset.locate(index) for index in range(9_000)])


def test_weights_hold_within_one_sample_for_random_blends():
    rng = random.Random(1)
    for _ in range(150):
        weights = [int(10 ** rng.uniform(3, 5)) for _ in range(rng.choice([2, 3, 7, 20]))]
        shortest = -(-sum(weights) // min(weights))
        size = shortest + rng.choice([0, 1, 2, 50])
        start = rng.choice([0, 1, rng.randrange(10**12)]) * size
        sources, indices = _helpers.blend_block(weights, start, size)
        before = _helpers.blend_counts(weights, start)
        assert sum(before) == start
        samples = list(zip(sources.tolist(), indices.tolist(), strict=True))
        check_prefixes(weights, samples, start=start, before=before)
        after = np.bincount(sources, minlength=len(weights)) + before
        assert after.tolist() == _helpers.blend_counts(weights, start + size)


def test_weights_do_not_drift_over_a_billion_samples():
    rng = random.Random(2)
    weights = [10 ** rng.uniform(-3, 0) for _ in range(100)]  # too fine to be held exactly
    dataset = blend(weights)
    for num_samples in [10**9, 987_654_321, 10**15 + 7]:
        counts = dataset.counts(num_samples)
        assert sum(counts) == num_samples
        shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
        errors = [abs(c - s * num_samples) for c, s in zip(counts, shares, strict=True)]
        assert max(errors) < 1.001  # they are held to within 2^-61 of their sum


def test_decimal_weights_are_exact_at_the_end_of_their_period():
    dataset = blend([Fraction("0.3"), Fraction("0.69"), Fraction("0.01")])
    assert dataset.counts(100) == [30, 69, 1]
    assert dataset.counts(10**12) == [3 * 10**11, 69 * 10**10, 10**10]


def test_counts_agree_with_walking():
    dataset = blend([3, 2, 0.5])
    walked = [0, 0, 0]
    for index in range(5_000):
        assert index % 100 or dataset.counts(index) == walked
        walked[dataset.locate(index)[0]] += 1


def test_proportions_are_those_of_megatron():
    """Megatron gives sample s to the source with the largest w max(s, 1) - count, the first of equals."""
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    counts = np.zeros(4)
    dataset = blend(weights.tolist())
    for sample in range(3_000):
        counts[np.argmax(weights * max(sample, 1) - counts)] += 1
        if sample % 500 == 0:
            assert np.all(np.abs(counts - dataset.counts(sample + 1)) < 2)


def test_sample_is_that_of_its_source():
    dataset = blend([1, 2])
    source, index = dataset.locate(12_345)
    assert dataset[12_345] == (str(source), index)


def test_order_of_access_does_not_matter():
    forward, scattered = blend([1, 2, 4]), blend([1, 2, 4])
    numbers = list(range(0, 40_000, 7))
    expected = {number: forward.locate(number) for number in numbers}
    random.Random(0).shuffle(numbers)
    assert all(scattered.locate(number) == expected[number] for number in numbers)


def test_far_sample_is_found_without_walking_there():
    dataset = blend([1 + i / 100 for i in range(100)])
    number = 987_654_321_987
    source, index = dataset.locate(number)
    assert dataset.counts(number)[source] == index
    assert dataset.counts(number + 1)[source] == index + 1


def test_blend_survives_pickling():
    dataset = blend([1, 2])
    dataset.locate(5)
    assert pickle.loads(pickle.dumps(dataset)).locate(5) == dataset.locate(5)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(ConfigError, match="number above 0"):
        blend([1.0, weight])


def test_source_too_rare_to_blend_is_named():
    with pytest.raises(ConfigError, match=f"weight of 1 gives it one sample .* one in {MAX_BLOCK}"):
        blend([1.0, 1e-9])
    assert blend([MAX_BLOCK - 1, 1]).counts(MAX_BLOCK) == [MAX_BLOCK - 1, 1]


def test_negative_sample_is_refused():
    with pytest.raises(IndexError, match="start at 0"):
        blend([1, 1])[-1]


def test_helper_refuses_what_has_no_schedule():
    for arguments in [
        ([], 0, 8),
        ([1, 0], 0, 8),
        ([1, 9], 0, 8),
        ([1, 1], 3, 8),
        ([1 << 62], 0, 8),
    ]:
        with pytest.raises(ValueError, match="blend"):
            _helpers.blend_block(*arguments)
