"""Batches of a training run: which samples a step takes, which of them a rank reads, and torch tensors of them.

The step that begins after `consumed` samples takes samples consumed to consumed + global_batch_size, whatever the
number of processes and the size of a micro-batch: these only decide who reads which. A resume needs `consumed`
alone, so nothing here is saved. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.data.gpt_dataset import Dataset
from megatron.data.read_ahead import ReadAhead, read_samples
from megatron.data.sample_order import sample_numbers


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's part of a global batch, micro-batch after micro-batch: B rows."""

    tokens: Tensor  # int64 [B, s]
    labels: Tensor  # int64 [B, s]
    loss_mask: Tensor  # fp32 [B, s]
    sample_ids: Tensor  # int64 [B], numbers of the samples in the run

    def to(self, device: torch.device) -> Batch:
        """Copy what a model computes with to a device; the numbers stay with the host, which derives keys of them."""
        return Batch(
            self.tokens.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.loss_mask.to(device, non_blocking=True),
            self.sample_ids,
        )


class BatchLoader:
    """Reads the batches of one data-parallel rank; with workers, one step ahead."""

    def __init__(
        self,
        dataset: Dataset | None,
        *,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        """Read from dataset, in num_workers processes or, if 0, in this one. Nothing starts before `batch`.

        Without a dataset (a stage in the middle of a pipeline) batches hold sample numbers and no tokens.
        """
        self._dataset = dataset
        self._micro_batch_size = micro_batch_size
        self._dp_rank, self._dp_size = dp_rank, dp_size
        self._num_workers = num_workers
        self._read_ahead: ReadAhead | None = None
        self._asked: list[int] = []  # what the workers read, or have read

    def batch(self, consumed: int, global_batch_size: int) -> Batch:
        """Give this rank's part of the step that begins after `consumed` samples.

        Workers then read for the step after it, if it takes as many samples. Any other may be asked for, too: it is
        only not ready yet. Raises what reading raises, and DataError if a worker died.
        """
        numbers = self._numbers(consumed, global_batch_size)
        if self._dataset is None:
            nothing = torch.empty((len(numbers), 0), dtype=torch.int64)
            return Batch(nothing, nothing, nothing.float(), torch.tensor(numbers))
        if self._num_workers == 0:
            arrays = read_samples(self._dataset, numbers)
        else:
            if self._read_ahead is None:
                self._read_ahead = ReadAhead(self._dataset, self._num_workers)
            if numbers != self._asked:
                self._read_ahead.ask(numbers)
            self._asked = []
            arrays = self._read_ahead.take()
            self._asked = self._numbers(consumed + global_batch_size, global_batch_size)
            self._read_ahead.ask(self._asked)
        tokens, labels, loss_mask = map(torch.from_numpy, arrays)
        return Batch(tokens, labels, loss_mask, torch.tensor(numbers, dtype=torch.int64))

    def close(self) -> None:
        """End the workers; `batch` starts them again."""
        if self._read_ahead is not None:
            self._read_ahead.close()
        self._read_ahead, self._asked = None, []

    def _numbers(self, consumed: int, global_batch_size: int) -> list[int]:
        return sample_numbers(
            consumed,
            global_batch_size,
            micro_batch_size=self._micro_batch_size,
            dp_rank=self._dp_rank,
            dp_size=self._dp_size,
        )
