"""What documents that do not see each other leave of attention, where only their mean length is known.

Modelled: a document ends after each token with one chance, 1 / mean, so lengths differ as they do in code (there even
more), and samples cut documents at their ends as packing does. Knows nothing of kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.model.flops import attended_pairs


def expected_pairs(seq_length: int, document_length: int | None, window: int | None) -> float:
    """Give the pairs of positions of a sample as `attended_pairs` counts them; document_length None: one document.

    Token p of the sample sees k keys, itself included, if no document ended after the k - 1 tokens before it:
    with q = 1 - 1/N that is N (1 - q^m) keys on average, m = min(p + 1, window). A square counts 2 k - 1 for it.
    For documents much shorter than samples and no window the sum is near 2 N s, twice that of equal lengths.
    """
    if document_length is None:
        return float(attended_pairs(seq_length, window))
    n = document_length
    most = [min(p + 1, window or seq_length) for p in range(seq_length)]
    keys = sum(n * (1.0 - (1.0 - 1.0 / n) ** m) for m in most)
    return 2.0 * keys - seq_length


def draw_starts(num_samples: int, seq_length: int, document_length: int) -> Tensor:
    """Draw documents so: the position at which each token's document starts, int64 [b, s] on the CPU."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(seq_length).expand(num_samples, -1)
    begins = torch.rand(num_samples, seq_length, generator=generator) < 1.0 / document_length
    return torch.where(begins, positions, 0).cummax(dim=1).values
