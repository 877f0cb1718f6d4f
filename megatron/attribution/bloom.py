"""How large a blocked Bloom filter is for a rate of false positives, and that rate for a filter as it came out.

A key has one block of 4,096 bits and sets `probes` of them, drawn with repetition. With c bits a key, the keys of a
block are Poisson of mean 4096 / c. A block of n keys has X bits set, as balls thrown into bins, and a key that is not
in it is found with probability E[(X / 4096)^probes]. So the rate of a filter is that, averaged over n: no
approximation but the randomness of the hash. A block lies in one page of the file, so a question reads one page of a
key; blocks of a cache line would take a third more bits at a rate of 10^-6, one block for all 4 % fewer. Knows
nothing of what keys are.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK_BITS = 4096
PRECISION = 18  # of the count of distinct keys: 0.2 % (HyperLogLog, 1.04 / 2^9)


@dataclass(frozen=True)
class Design:
    """What a rate takes."""

    rate: float
    probes: int
    bits_per_key: float

    def num_blocks(self, num_keys: int) -> int:
        """Give the blocks for so many distinct keys."""
        return max(1, math.ceil(num_keys * self.bits_per_key / BLOCK_BITS))


@functools.lru_cache(maxsize=16)
def design(rate: float) -> Design:
    """Give the smallest filter of a rate of false positives."""
    fewest = max(1, round(-math.log2(rate) * 0.5))
    most = min(64, math.ceil(-math.log2(rate)) + 2)
    sizes = {probes: _bits_per_key(rate, probes) for probes in range(fewest, most + 1)}
    probes = min(sizes, key=lambda number: sizes[number])
    return Design(rate, probes, sizes[probes])


def rate_of(bits_per_key: float, probes: int) -> float:
    """Give the rate of false positives of a filter of so many bits for a key."""
    mean = BLOCK_BITS / bits_per_key
    by_keys = _rates_by_keys(probes, _most_keys(mean))
    numbers = np.arange(len(by_keys))
    logarithms = numbers * math.log(mean) - mean - np.array([math.lgamma(n + 1) for n in numbers])
    return float(np.dot(np.exp(logarithms), by_keys))


def rate_of_bits(bits_set: npt.NDArray[np.integer], probes: int) -> float:
    """Give the rate of a filter whose blocks have so many bits set."""
    return float(np.mean((bits_set / BLOCK_BITS) ** probes)) if len(bits_set) else 0.0


def _bits_per_key(rate: float, probes: int) -> float:
    low, high = 1.0, 512.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_of(middle, probes) > rate else (low, middle)
    return high


def _most_keys(mean: float) -> int:
    """Give a number of keys that next to no block exceeds, one of few so that it is computed once."""
    return 1 << math.ceil(math.log2(mean + 12 * math.sqrt(mean) + 12))


@functools.lru_cache(maxsize=256)
def _rates_by_keys(probes: int, most: int) -> npt.NDArray[np.float64]:
    """Give E[(X / 4096)^probes] of blocks that hold 0 to `most` keys."""
    filled = np.arange(BLOCK_BITS + 1) / BLOCK_BITS
    chance = np.zeros(BLOCK_BITS + 1)  # of each number of bits set
    chance[0] = 1.0
    rates = [0.0]
    for _ in range(most):
        for _ in range(probes):
            stays, grows = chance * filled, chance * (1 - filled)
            chance = stays
            chance[1:] += grows[:-1]
        rates.append(float(np.dot(chance, filled**probes)))
    return np.array(rates)


def estimate_distinct(registers: npt.NDArray[np.uint8]) -> int:
    """Give the number of distinct keys that registers have seen (Ertl, 2017: without bias at any number)."""
    size = len(registers)
    most = 64 - (size.bit_length() - 1) + 1  # the largest value of a register
    counts = np.bincount(registers, minlength=most + 1).astype(float)
    total = size * _tau(1 - counts[most] / size)
    for value in range(most - 1, 0, -1):
        total = 0.5 * (total + counts[value])
    total += size * _sigma(counts[0] / size)
    return round(size * size / (2 * math.log(2) * total)) if math.isfinite(total) else 0


def _sigma(x: float) -> float:
    if x == 1:
        return math.inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x, before = x * x, z
        z, y = z + x * y, y + y
    return z


def _tau(x: float) -> float:
    if x in (0.0, 1.0):
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x, before, y = math.sqrt(x), z, y * 0.5
        z -= (1 - x) ** 2 * y
    return z / 3
