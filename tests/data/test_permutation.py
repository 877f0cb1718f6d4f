"""A keyed permutation is a bijection, looks random, and is the same everywhere."""

import numpy as np
import pytest

from megatron.data.permutation import MAX_SIZE, Permutation, keyed_word, random_word


def chi_square_deviation(counts, expected):
    """Standard deviations by which the chi-square statistic exceeds its mean."""
    counts = np.asarray(counts, float).ravel()
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("key", [(0, "train", 0), (1234, "train", 7)])
def test_permutation_is_a_bijection_for_every_small_size(key):
    for size in [*range(1, 600), 4096, 4097, 65535, 100003]:
        images = Permutation(size, *key).map(np.arange(size))
        assert np.array_equal(np.sort(images), np.arange(size)), size


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 2**31 - 1, 2**40 + 9, MAX_SIZE])
def test_one_by_one_and_array_agree(size):
    permutation = Permutation(size, 5, "name", 3)
    draws = [random_word(1, number) % size for number in range(50)]
    indices = np.array([0, size - 1, *draws])
    images = permutation.map(indices)
    assert images.tolist() == [permutation[int(index)] for index in indices]
    assert images.min() >= 0 and images.max() < size


def test_large_permutation_does_not_collide():
    images = Permutation(MAX_SIZE, 5, "name", 3).map(np.arange(200_000))
    assert len(np.unique(images)) == 200_000


def test_every_index_lands_everywhere_equally_often():
    size, num_keys = 13, 4000
    counts = np.zeros((size, size))
    for epoch in range(num_keys):
        counts[np.arange(size), Permutation(size, 1, "train", epoch).map(np.arange(size))] += 1
    assert abs(chi_square_deviation(counts, num_keys / size)) < 5


def test_every_order_of_five_things_is_equally_likely():
    orders: dict[tuple[int, ...], int] = {}
    for epoch in range(12_000):
        order = tuple(Permutation(5, 1, "train", epoch).map(np.arange(5)).tolist())
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 120
    assert abs(chi_square_deviation(list(orders.values()), 100)) < 5


def test_neighbours_do_not_stay_neighbours():
    size = 100_000
    images = Permutation(size, 1, "train", 0).map(np.arange(size))
    steps = np.abs(np.diff(images)) / size
    # |x - y| of two uniform numbers has density 2 (1 - d).
    edges = np.linspace(0, 1, 21)
    expected = size * np.diff(2 * edges - edges**2)
    counts, _ = np.histogram(steps, edges)
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected))


@pytest.mark.parametrize("other", [(1, "train", 1), (2, "train", 0), (1, "valid", 0)])
def test_seed_name_and_epoch_each_give_an_independent_order(other):
    size = 10_000
    first = Permutation(size, 1, "train", 0).map(np.arange(size))
    second = Permutation(size, *other).map(np.arange(size))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(size)
    assert np.sum(first == second) < 10  # 1 expected


def test_key_parts_do_not_run_together():
    assert keyed_word("ab", "c") != keyed_word("a", "bc")
    assert keyed_word(1, 23) != keyed_word(12, 3)


def test_draws_after_a_word_are_uniform():
    word = keyed_word(1, "train", 5)
    draws = np.array([random_word(word, counter) for counter in range(20_000)], np.uint64)
    assert abs(chi_square_deviation(np.bincount(draws >> np.uint64(58)), 20_000 / 64)) < 5
    assert (
        abs(chi_square_deviation(np.bincount((draws & np.uint64(63)).astype(int)), 20_000 / 64)) < 5
    )


def test_values_are_the_same_on_every_platform():
    """A dataset's order must not change between releases: a resumed run would see other samples."""
    assert keyed_word(1234, "train", 0) == 7060101829540721278
    assert Permutation(1000, 1234, "train", 0).map(np.arange(8)).tolist() == [
        184,
        440,
        829,
        532,
        74,
        666,
        941,
        946,
    ]
    assert Permutation(10**12 + 39, 1234, "train", 1)[123_456_789_012] == 747336607278


def test_draw_is_that_of_the_published_splitmix64():
    # The first outputs for seed 1234567 of the public-domain reference, splitmix64.c.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [random_word(1234567, counter) for counter in range(3)] == expected


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_of_range_is_refused(index):
    with pytest.raises(IndexError, match="permutation of 10"):
        Permutation(10, 0)[index]
    with pytest.raises(IndexError, match="permutation of 10"):
        Permutation(10, 0).map([0, index])


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 1 << 40])
def test_the_index_of_a_value_undoes_the_permutation(size):
    permutation = Permutation(size, 7, "name", 3)
    for value in range(0, size, max(size // 50, 1)):
        assert permutation[permutation.index(value)] == value
    with pytest.raises(IndexError):
        permutation.index(size)
