"""A dataset of numbers whose workers need not import torch."""

import os
import signal

import numpy as np

from megatron.errors import DataError

DAMAGED, DEADLY = 1000, 2000


class Numbers:
    """Sample i counts from the number i; two numbers are trouble."""

    name = "numbers"

    def __getitem__(self, index):
        if index == DAMAGED:
            raise DataError(f"sample {index} is damaged; leave it out")
        if index == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        tokens = np.arange(index, index + 4, dtype=np.int64)
        return {"tokens": tokens, "labels": tokens + 1, "loss_mask": np.ones(4, np.float32)}


class LargeNumbers:
    """Sample i counts from 2^16 - 8 + i, so that some hold an id that takes more than 16 bits."""

    name = "large numbers"

    def __getitem__(self, index):
        tokens = np.arange(2**16 - 8 + index, 2**16 - 4 + index)
        return {"tokens": tokens, "labels": tokens + 1, "loss_mask": np.ones(4, np.float32)}
