"""Samples of one token file, by arithmetic: no index files, no shuffle array, nothing that grows with the data.

Documents lie as preprocessing wrote them, and the samples of an epoch are consecutive windows of seq_length + 1
tokens, the last of which is the first of the next window. Sample i is window permutation_e(i mod n) of epoch
e = i // n, so each window comes exactly once an epoch and any sample costs the same: one permutation, one slice.

The windows of an epoch leave over fewer than seq_length tokens of the range. Where the first window starts is
drawn anew each epoch, so that over epochs every token is seen and windows cut documents at other places.
Tokens of excluded documents are skipped as if they were not in the file. Knows nothing of blending, batches or torch.
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from megatron.data.fim import FillInTheMiddle
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.permutation import Permutation, keyed_word
from megatron.data.token_range import NO_RUNS, Runs, TokenRange
from megatron.errors import DataError


class _Sequence(TypedDict):
    tokens: npt.NDArray[np.int64]  # [s]
    labels: npt.NDArray[np.int64]  # [s]
    loss_mask: npt.NDArray[np.float32]  # [s]


class Sample(_Sequence, total=False):
    """One sequence: the model reads `tokens` and is to give `labels` where `loss_mask` is 1."""

    # [s], whether a token ends no document though it is the one that ends documents; without it, none does that
    goes_on: npt.NDArray[np.bool_]


class Dataset(Protocol):
    """Samples by number, without end: a function of the number alone."""

    name: str

    def __getitem__(self, index: int) -> Sample: ...


class GPTDataset:
    """The samples of a range of documents."""

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: range,
        *,
        seq_length: int,
        seed: int,
        name: str,
        fim: FillInTheMiddle | None = None,
        eod_without_loss: int | None = None,
        excluded: Runs = NO_RUNS,
        key: str | None = None,
    ) -> None:
        """Take a range of documents but the excluded; `key`, or else `name`, tells its draws from those of others.

        Positions that read the token `eod_without_loss` carry no loss (--eod-mask-loss). Raises DataError if the
        documents hold fewer than seq_length + 1 tokens.
        """
        self.name = name
        self._key = name if key is None else key
        self.tokens = TokenRange(indexed, documents, excluded)
        self._seq_length = seq_length
        self._seed = seed
        self._fim = fim
        self._eod_without_loss = eod_without_loss
        self.num_documents, self.num_tokens = self.tokens.num_documents, self.tokens.num_tokens
        if self.num_tokens <= seq_length:
            num_excluded = len(documents) - self.num_documents
            without = f" without the {num_excluded} excluded ones" if num_excluded else ""
            raise DataError(
                f"{name}: documents {documents.start} to {documents.stop} of {indexed.prefix}{without} hold "
                f"{self.num_tokens} tokens, and one sample takes {seq_length + 1}; give more documents "
                "or a smaller --seq-length"
            )
        self.samples_per_epoch, self._num_left_over = divmod(self.num_tokens - 1, seq_length)

    def __getitem__(self, index: int) -> Sample:
        """Give sample `index` >= 0; those from samples_per_epoch on belong to later epochs."""
        start = self.window_start(index)
        window = self.tokens.read(start, start + self._seq_length + 1)
        num_tokens = len(window)
        if self._fim is not None:
            window, num_tokens = self._fim(window, keyed_word(self._seed, self._key, "fim", index))
        tokens, labels = window[:-1], window[1:]
        loss_mask = np.ones(self._seq_length, np.float32)
        loss_mask[num_tokens - 1 :] = 0.0  # their labels are padding
        if self._eod_without_loss is not None:
            loss_mask[tokens == self._eod_without_loss] = 0.0
        return Sample(tokens=tokens, labels=labels, loss_mask=loss_mask)

    def window(self, index: int) -> list[range]:
        """Give where the seq_length + 1 tokens of sample `index` lie in the token file, before FIM."""
        start = self.window_start(index)
        return self.tokens.pieces(start, start + self._seq_length + 1)

    def window_start(self, index: int) -> int:
        """Give where the window of sample `index` starts in `tokens`."""
        if index < 0:
            raise IndexError(f"sample {index} of {self.name}; samples start at 0")
        epoch, position = divmod(index, self.samples_per_epoch)
        return self._origin(epoch) + self._order(epoch)[position] * self._seq_length

    def samples_of(self, start: int, stop: int, limit: int) -> list[int]:
        """Give the samples below limit whose windows hold any of tokens start to stop of the token file, ascending."""
        found = set()
        for positions in self.tokens.positions(start, stop):
            for epoch in range(-(-limit // self.samples_per_epoch)):
                origin, order = self._origin(epoch), self._order(epoch)
                # a window's last token is the next one's first
                first = -((origin + self._seq_length - positions.start) // self._seq_length)
                last = (positions.stop - 1 - origin) // self._seq_length
                for window in range(max(first, 0), min(last + 1, self.samples_per_epoch)):
                    found.add(epoch * self.samples_per_epoch + order.index(window))
        return sorted(sample for sample in found if sample < limit)

    def _origin(self, epoch: int) -> int:
        """Give where the first window of an epoch starts in `tokens`."""
        return keyed_word(self._seed, self._key, "origin", epoch) % (self._num_left_over + 1)

    def _order(self, epoch: int) -> Permutation:
        return Permutation(self.samples_per_epoch, self._seed, self._key, epoch)
