"""The rate of false positives is the one that was designed, and the size what its formula says."""

import numpy as np
import pytest

from megatron.attribution import bloom

fingerprints = pytest.importorskip(
    "megatron.attribution._fingerprints", reason="csrc/ is not compiled: make env"
)


def filled(design, keys):
    num_blocks = design.num_blocks(len(keys))
    blocks = np.zeros((num_blocks, bloom.BLOCK_BITS // 64), np.uint64)
    fingerprints.insert(blocks, 0, num_blocks, design.probes, keys)
    return blocks


def random_keys(seed, count):
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("rate", [0.05, 1e-2, 1e-3])
def test_measured_rate_is_the_designed_one_and_what_is_told_from_the_bits(rate):
    design = bloom.design(rate)
    blocks = filled(design, random_keys(1, 300_000))
    measured = fingerprints.contains(blocks, design.probes, random_keys(2, 3_000_000)).mean()
    assert measured == pytest.approx(rate, rel=0.08)
    bits_set = np.bitwise_count(blocks).sum(axis=1)
    assert bloom.rate_of_bits(bits_set, design.probes) == pytest.approx(measured, rel=0.08)


def test_every_key_is_found_and_parts_of_a_filter_make_up_the_whole():
    design, keys = bloom.design(1e-4), random_keys(3, 50_000)
    whole = filled(design, keys)
    assert fingerprints.contains(whole, design.probes, keys).all()
    parts = [np.zeros((size, 64), np.uint64) for size in (7, len(whole) - 7)]
    for first, part in zip((0, 7), parts, strict=True):
        fingerprints.insert(part, first, len(whole), design.probes, keys)
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rate", [1e-2, 1e-4, 1e-6])
def test_size_is_near_the_least_that_any_filter_of_this_kind_takes(rate):
    # A filter of one block takes log2(1 / rate) / ln 2 bits a key (Bloom, 1970).
    least = np.log2(1 / rate) / np.log(2)
    assert least < bloom.design(rate).bits_per_key < 1.05 * least


@pytest.mark.parametrize("count", [0, 1, 1000, 400_000, 3_000_000])
def test_distinct_keys_are_counted_within_half_a_percent(count):
    registers = np.zeros(1 << bloom.PRECISION, np.uint8)
    keys = random_keys(4, count)
    for part in (keys, keys[: count // 2]):  # what comes twice counts once
        fingerprints.count_distinct(registers, part)
    assert bloom.estimate_distinct(registers) == pytest.approx(count, rel=0.008, abs=1)
