"""Which samples a data-parallel rank takes in a step. Arithmetic alone; knows nothing of data or torch."""

from __future__ import annotations


def sample_numbers(
    consumed: int, global_batch_size: int, *, micro_batch_size: int, dp_rank: int, dp_size: int
) -> list[int]:
    """Give the samples of a step that one data-parallel rank takes, micro-batch after micro-batch.

    Micro-batch k is made of the k-th micro_batch_size x dp_size samples of the step, cut in order of ranks, as by
    Megatron's sampler.
    """
    stride = micro_batch_size * dp_size
    assert global_batch_size % stride == 0
    first = consumed + dp_rank * micro_batch_size
    return [
        start + place
        for start in range(first, first + global_batch_size, stride)
        for place in range(micro_batch_size)
    ]
