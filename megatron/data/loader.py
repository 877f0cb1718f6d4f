"""Batches of a training run: which samples a step takes, which of them a rank reads, and torch tensors of them.

The step that begins after `consumed` samples takes samples consumed to consumed + global_batch_size, whatever the
number of processes and the size of a micro-batch: these only decide who reads which. A resume needs `consumed`
alone, so nothing here is saved. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron.data.gpt_dataset import Dataset
from megatron.data.read_ahead import CARRIES_LOSS, GOES_ON, Arrays, ReadAhead, read_samples
from megatron.data.sample_order import sample_numbers
from megatron.transfer import to_device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's part of a global batch, micro-batch after micro-batch: B rows.

    s is the whole sample, or the positions of it that a process reads. Types are those that `to` gives: as they are
    read, whole numbers have fewer bits and the mask has one.
    """

    tokens: Tensor  # int64 [B, s]
    labels: Tensor  # int64 [B, s]
    loss_mask: Tensor  # fp32 [B, s]
    sample_ids: Tensor  # int64 [B], numbers of the samples in the run
    position_ids: Tensor | None = None  # int64 [B, s], with --reset-position-ids
    document_starts: Tensor | None = None  # int64 [B, s], with --reset-attention-mask

    def to(self, device: torch.device) -> Batch:
        """Copy what a model computes with to a device, small, and give it there the types that a model takes.

        Nothing waits for the copies. Numbers and starts stay with the host, which derives keys and lengths of them.
        """
        positions = self.position_ids
        return Batch(
            to_device(self.tokens, device).long(),
            to_device(self.labels, device).long(),
            to_device(self.loss_mask, device).float(),
            self.sample_ids,
            None if positions is None else to_device(positions, device).long(),
            self.document_starts,
        )

    def at(self, positions: Tensor) -> Batch:
        """Give the part of whole samples at some positions, int64 [s']. Starts stay those in the whole sample."""

        def select(x: Tensor) -> Tensor:
            return x.index_select(1, positions)

        return Batch(
            select(self.tokens),
            select(self.labels),
            select(self.loss_mask),
            self.sample_ids,
            None if self.position_ids is None else select(self.position_ids),
            None if self.document_starts is None else select(self.document_starts),
        )


def document_starts(tokens: Tensor, eod: int, goes_on: Tensor | None = None) -> Tensor:
    """Give for each token the position in its sample at which its document starts: [B, s] -> int64 [B, s].

    A document ends with its end-of-document token, unless that goes_on, bool [B, s]. One that a sample cuts starts, or
    ends, with the sample.
    """
    positions = torch.arange(1, tokens.size(1))
    starts = torch.zeros_like(tokens, dtype=torch.int64)
    is_end = tokens == eod if goes_on is None else (tokens == eod) & ~goes_on
    starts[:, 1:] = torch.where(is_end[:, :-1], positions, 0)
    return starts.cummax(dim=1).values


@dataclass(frozen=True)
class DocumentResets:
    """What starts anew after each end-of-document token in a sample, found in the tokens that are trained on."""

    eod: int
    positions: bool  # --reset-position-ids
    attention: bool  # --reset-attention-mask

    def apply(self, batch: Batch, goes_on: Tensor | None = None) -> Batch:
        """Add to a batch on the CPU what the options ask for. goes_on: bool [B, s], as of `document_starts`."""
        starts = document_starts(batch.tokens, self.eod, goes_on)
        return replace(
            batch,
            position_ids=(torch.arange(starts.size(1)) - starts).int() if self.positions else None,
            document_starts=starts if self.attention else None,
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
        resets: DocumentResets | None = None,
        positions: Tensor | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Read from dataset, in num_workers processes or, if 0, in this one. Nothing starts before `batch`.

        Without a dataset (a stage in the middle of a pipeline) batches hold sample numbers and no tokens.
        positions: int64 [s'] on the CPU, which of each sample a batch holds; None: all. device: where batches go.
        """
        self._device = device
        self._resets = resets
        self._positions = positions
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
        sample_ids = torch.tensor(numbers, dtype=torch.int64)
        if self._dataset is None:
            nothing = torch.empty((len(numbers), 0))
            return Batch(nothing, nothing, nothing, sample_ids).to(self._device)
        following = self._numbers(consumed + global_batch_size, global_batch_size)
        ids, marks = map(torch.from_numpy, self._read(self._dataset, numbers, following))
        carries_loss = (marks & CARRIES_LOSS).bool()
        batch = Batch(ids[:, :-1], ids[:, 1:], carries_loss, sample_ids)
        if self._resets is not None:
            batch = self._resets.apply(batch, (marks & GOES_ON).bool())
        if self._positions is not None:
            batch = batch.at(self._positions)
        return batch.to(self._device)

    def _read(self, dataset: Dataset, numbers: list[int], following: list[int]) -> Arrays:
        """Read samples; workers then begin with those that follow."""
        if self._num_workers == 0:
            return read_samples(dataset, numbers)
        if self._read_ahead is None:
            self._read_ahead = ReadAhead(dataset, self._num_workers)
        if numbers != self._asked:
            self._read_ahead.ask(numbers)
        self._asked = []
        arrays = self._read_ahead.take()
        self._asked = following
        self._read_ahead.ask(following)
        return arrays

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
