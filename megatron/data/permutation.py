"""Random numbers and permutations as functions of a key: no generator, no state, no table.

`keyed_word` turns (seed, what, index) into 64 random bits; `Permutation` shuffles range(n) for any n up to 2^62 in
constant memory. Both are integer arithmetic only, so every machine gives the same values. Knows nothing of data.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

MAX_SIZE = 1 << 62
# With 8, the 720 permutations of six things are visibly unequal in frequency; with 16 they are not.
NUM_ROUNDS = 16

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of splitmix64


def keyed_word(*key: int | str) -> int:
    """Give 64 random bits for a key, such as (seed, name, epoch)."""
    text = "".join(f"{len(part)}:{part}" for part in map(str, key))  # no two keys read alike
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def random_word(word: int, counter: int) -> int:
    """Give the counter-th 64 random bits that follow from `word`: one draw of splitmix64, at random access."""
    return _mix(word + (counter + 1) * _GOLDEN & _MASK)


def random_words(word: int, counters: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
    """Give `random_word` of many counters at once."""
    steps = (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _mix_array(np.uint64(word) + steps)


class Permutation:
    """A keyed bijection of range(size): `permutation[i]` for one index, `permutation.map(array)` for many.

    A Feistel network on a grid of a = ceil(sqrt(size)) by ceil(size / a) cells: each round adds a hash of one
    coordinate to the other. Fewer than a cells of the grid lie outside the range; an index that lands on one of
    them is sent through again until it lands inside, which keeps the map a bijection.
    """

    def __init__(self, size: int, *key: int | str) -> None:
        """Draw the permutation of range(size) that belongs to a key, such as (seed, name, epoch)."""
        assert 0 < size <= MAX_SIZE
        self.size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        word = keyed_word(*key)
        self._round_keys = [random_word(word, number) for number in range(NUM_ROUNDS)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of a permutation of {self.size}")
        index = self._encrypt(index)
        while index >= self.size:
            index = self._encrypt(index)
        return index

    def index(self, value: int) -> int:
        """Give where a value stands: the index whose `permutation[index]` it is."""
        if not 0 <= value < self.size:
            raise IndexError(f"value {value} of a permutation of {self.size}")
        value = self._decrypt(value)
        while value >= self.size:
            value = self._decrypt(value)
        return value

    def map(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Permute an array of indices: the same values as one by one."""
        given = np.asarray(indices, np.int64)
        if given.size and (given.min() < 0 or given.max() >= self.size):
            raise IndexError(f"indices outside of a permutation of {self.size}")
        result = self._encrypt_array(given.ravel().astype(np.uint64))
        (outside,) = np.nonzero(result >= self.size)
        while outside.size:
            result[outside] = self._encrypt_array(result[outside])
            outside = outside[result[outside] >= self.size]
        return result.astype(np.int64).reshape(given.shape)

    def _encrypt(self, index: int) -> int:
        row, column = divmod(index, self._columns)
        for number, key in enumerate(self._round_keys):
            if number % 2 == 0:
                row = (row + _mix(column ^ key)) % self._rows
            else:
                column = (column + _mix(row ^ key)) % self._columns
        return row * self._columns + column

    def _decrypt(self, index: int) -> int:
        row, column = divmod(index, self._columns)
        for number, key in reversed(list(enumerate(self._round_keys))):
            if number % 2 == 0:
                row = (row - _mix(column ^ key)) % self._rows
            else:
                column = (column - _mix(row ^ key)) % self._columns
        return row * self._columns + column

    def _encrypt_array(self, index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        row, column = np.divmod(index, columns)
        for number, key in enumerate(self._round_keys):
            if number % 2 == 0:
                row = (row + _mix_array(column ^ np.uint64(key)) % rows) % rows
            else:
                column = (column + _mix_array(row ^ np.uint64(key)) % columns) % columns
        return row * columns + column


def _mix(word: int) -> int:
    """Finalise splitmix64: every bit of the result depends on every bit of the word."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _MASK
    return word ^ word >> 31


def _mix_array(word: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)
