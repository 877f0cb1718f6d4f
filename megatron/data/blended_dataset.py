"""Several datasets as one, by weights that hold at every prefix, with any sample at the same cost.

Of the first t samples, source d gives floor(w_d t) or ceil(w_d t), for every t: it is never a whole sample away from
its share, however long the run. (Megatron gives sample t to the source that lacks most, which takes a walk over all
samples before t and keeps their order in memory.) The order is found a block at a time, by the schedule that
csrc/data_helpers.cpp describes; nothing is written to disk. Knows nothing of files or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from megatron.data.gpt_dataset import Dataset, Sample
from megatron.errors import ConfigError

# A sample at random costs a block: 5 us with two sources, 60 us with a hundred of one weight.
MIN_BLOCK = 1 << 8
MAX_BLOCK = 1 << 20  # about 0.1 s and 10 MB with a hundred
MAX_SUM = 1 << 61


class BlendedDataset:
    """Samples of several datasets in fixed proportions."""

    def __init__(
        self, datasets: Sequence[Dataset], weights: Sequence[Fraction | float], name: str
    ) -> None:
        """Blend datasets; weights need not sum to 1. Raises ConfigError for weights that cannot be."""
        assert len(datasets) == len(weights) > 0
        self.name = name
        self.datasets = tuple(datasets)
        self._weights = _whole_weights(weights)
        rarest = min(range(len(weights)), key=self._weights.__getitem__)
        gap = -(-sum(self._weights) // self._weights[rarest])  # samples from one of its to the next
        if gap > MAX_BLOCK:
            raise ConfigError(
                f"{name}: the weight of {datasets[rarest].name} gives it one sample in {gap}; the smallest that can "
                f"be blended gives one in {MAX_BLOCK}. Leave the source out or raise its weight"
            )
        self._block_size = max(MIN_BLOCK, 1 << (gap - 1).bit_length())
        self._block: tuple[int, npt.NDArray[np.uint16], npt.NDArray[np.int64]] | None = None

    def __getitem__(self, index: int) -> Sample:
        """Give sample `index` >= 0."""
        source, index_within = self.locate(index)
        return self.datasets[source][index_within]

    def locate(self, index: int) -> tuple[int, int]:
        """Give which dataset sample `index` is of, and its number there."""
        if index < 0:
            raise IndexError(f"sample {index} of {self.name}; samples start at 0")
        number, place = divmod(index, self._block_size)
        sources, indices = self._read_block(number)
        return int(sources[place]), int(indices[place])

    def index(self, source: int, number: int) -> int:
        """Give the sample that sample `number` of a dataset is: undo `locate`."""
        weight, total = self._weights[source], sum(self._weights)
        # of t samples the source gives floor or ceil of its share: that leaves few places
        low, high = max((number - 1) * total // weight, 0), (number + 2) * total // weight + 1
        while low < high:
            middle = (low + high) // 2
            if self.counts(middle + 1)[source] > number:
                high = middle
            else:
                low = middle + 1
        return low

    def counts(self, num_samples: int) -> list[int]:
        """Give how many of the first num_samples samples each dataset gives."""
        from megatron.data import _helpers

        number, place = divmod(num_samples, self._block_size)
        counts = _helpers.blend_counts(self._weights, number * self._block_size)
        if place:
            sources, _ = self._read_block(number)
            in_block = np.bincount(sources[:place], minlength=len(counts))
            counts = [before + int(more) for before, more in zip(counts, in_block, strict=True)]
        return counts

    def _read_block(self, number: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        from megatron.data import _helpers

        block = self._block  # one read: another thread may put its own block there
        if block is None or block[0] != number:
            start = number * self._block_size
            block = (number, *_helpers.blend_block(self._weights, start, self._block_size))
            self._block = block
        return block[1], block[2]


def _whole_weights(weights: Sequence[Fraction | float]) -> list[int]:
    """Give whole numbers in the proportion of the weights: exactly, or to within 2^-61 of their sum."""
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of a dataset is {weight}; give a number above 0")
    exact = [Fraction(weight) for weight in weights]
    denominator = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * denominator) for weight in exact]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    total = sum(whole)
    if total > MAX_SUM:
        whole = [max(1, weight * MAX_SUM // total) for weight in whole]
    return whole
