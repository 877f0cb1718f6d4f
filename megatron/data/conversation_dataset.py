"""Samples of conversations: whole ones side by side, loss on the answers alone.

A conversation is a document whose odd items are answers (preprocessing/conversation_encoder.py). Those that fit
together are packed once, by their sizes; an epoch is a permutation of the packs. No conversation is cut, so what is
longer than a sample is left out, aloud; what a pack leaves free is padded with end-of-document ids. None of it carries
loss but answers, the id that ends each included. That no token sees another conversation is up to
--reset-attention-mask.

Opening makes a pass over the sizes, and memory is some 40 bytes a conversation. Knows nothing of templates or torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megatron.data.checksum import Checksums
from megatron.data.gpt_dataset import GPTDataset, Sample
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.origin import CONVERSATIONS, origin_path, read_origin
from megatron.data.packing import Numbers, pack
from megatron.data.permutation import Permutation
from megatron.data.token_range import NO_RUNS, Runs, TokenRange, clip_runs, token_positions
from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.tokenizer.chat_template import ChatTemplate

logger = get_logger(__name__)


class ConversationDataset:
    """The samples of a range of conversations."""

    def __init__(
        self,
        indexed: IndexedDataset,
        documents: range,
        *,
        seq_length: int,
        seed: int,
        name: str,
        eod: int,
        excluded: Runs = NO_RUNS,
        key: str | None = None,
    ) -> None:
        """Take a range of documents but the excluded; `key`, or else `name`, tells its draws from those of others.

        Raises DataError for documents that are no conversations, and if none is as short as a sample.
        """
        self.name = name
        self._key = name if key is None else key
        self.tokens = TokenRange(indexed, documents, excluded)
        self.seq_length, self._seed, self._eod = seq_length, seed, eod
        kept = _kept(documents, excluded)
        sizes = _sizes(indexed, kept)
        is_short = sizes <= seq_length + 1
        self.num_too_long = int((~is_short).sum())
        self._documents, sizes = kept[is_short], sizes[is_short]
        if not len(sizes):
            raise DataError(
                f"{name}: none of the {len(kept)} conversations of {indexed.prefix} has at most {seq_length + 1} "
                "tokens, which a sample holds; give a larger --seq-length or other conversations"
            )
        self._packs = pack(sizes, seq_length + 1)
        self.num_documents, self.num_tokens = len(sizes), int(sizes.sum())
        self.num_answer_tokens = _count_answers(indexed, self._documents)
        self.samples_per_epoch = len(self._packs)

    @property
    def padding(self) -> float:
        """The part of all samples that is padding."""
        return 1.0 - self.num_tokens / (self.samples_per_epoch * (self.seq_length + 1))

    def __getitem__(self, index: int) -> Sample:
        """Give sample `index` >= 0; those from samples_per_epoch on belong to later epochs."""
        window = np.full(self.seq_length + 1, self._eod, np.int64)
        is_answer = np.zeros(len(window), np.bool_)
        goes_on = np.zeros(len(window), np.bool_)
        place, indexed = 0, self.tokens.indexed
        for document in self._members(index):
            first, end = (int(indexed.document_items[document + i]) for i in (0, 1))
            start, stop = indexed.document_start(document), indexed.document_start(document + 1)
            to = slice(place, place + stop - start)
            window[to] = indexed.read(start, stop)
            is_answer[to] = np.repeat(np.arange(end - first) % 2 == 1, indexed.sizes[first:end])
            goes_on[to] = window[to] == self._eod
            place = to.stop
            goes_on[place - 1] = False
        return Sample(
            tokens=window[:-1],
            labels=window[1:],
            loss_mask=is_answer[1:].astype(np.float32),
            goes_on=goes_on[:-1],
        )

    def window(self, index: int) -> list[range]:
        """Give where the tokens of sample `index` lie in the token file, without the padding that follows them."""
        start = self.tokens.indexed.document_start
        return [range(start(one), start(one + 1)) for one in self._members(index)]

    def _members(self, index: int) -> list[int]:
        if index < 0:
            raise IndexError(f"sample {index} of {self.name}; samples start at 0")
        epoch, position = divmod(index, self.samples_per_epoch)
        order = Permutation(self.samples_per_epoch, self._seed, self._key, epoch)
        members: list[int] = self._documents[self._packs[order[position]]].tolist()
        return members


SourceDataset = GPTDataset | ConversationDataset  # what reads one token file


def has_short(indexed: IndexedDataset, documents: range, excluded: Runs, seq_length: int) -> bool:
    """Say whether any conversation of a range but the excluded fits into a sample. Raises DataError if one is none."""
    return bool((_sizes(indexed, _kept(documents, excluded)) <= seq_length + 1).any())


def template_of(indexed: IndexedDataset) -> ChatTemplate | None:
    """Give the template of a token file of conversations; None for one of plain documents.

    Raises DataError where the file that would say it is missing or damaged.
    """
    path = origin_path(indexed.prefix)
    origin = read_origin(indexed.prefix)
    if origin is None:
        checksums = Checksums.open(indexed.prefix)
        if checksums is not None and path in checksums.digests:
            raise DataError(
                f"{path} is missing: it says whether these documents are conversations, whose answers alone carry "
                "loss; copy all files of the dataset again"
            )
        if len(indexed) != indexed.num_documents:
            logger.warning(
                "%s: its documents have several items and no %s says why; each document is read as one text, with "
                "loss on all of it",
                indexed.prefix,
                path.name,
            )
        return None
    if CONVERSATIONS not in origin:
        return None
    return ChatTemplate.from_json(origin[CONVERSATIONS], f"{path}: {CONVERSATIONS}")


def _kept(documents: range, excluded: Runs) -> Numbers:
    """Give the numbers of documents that are not excluded."""
    is_kept = np.ones(len(documents), np.bool_)
    for start, stop in clip_runs(excluded, documents) - documents.start:
        is_kept[start:stop] = False
    return np.flatnonzero(is_kept) + documents.start


def _sizes(indexed: IndexedDataset, documents: Numbers) -> Numbers:
    """Give the number of tokens of each document; DataError if one is no conversation."""
    num_items = indexed.document_items[documents + 1] - indexed.document_items[documents]
    if len(documents) and num_items.min() < 2:
        raise DataError(
            f"document {documents[num_items.argmin()]} of {indexed.prefix} is no conversation, as "
            f"{origin_path(indexed.prefix).name} says: it has no answer; copy the dataset again, or preprocess it again"
        )
    return token_positions(indexed, documents + 1) - token_positions(indexed, documents)


def _count_answers(indexed: IndexedDataset, documents: Numbers) -> int:
    """Count the tokens of the odd items of documents."""
    firsts = np.asarray(indexed.document_items[documents])
    counts = np.asarray(indexed.document_items[documents + 1]) - firsts
    starts = np.cumsum(counts) - counts
    places: npt.NDArray[np.int64] = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    is_answer = places % 2 == 1
    items = (np.repeat(firsts, counts) + places)[is_answer]
    return int(indexed.sizes[items].sum(dtype=np.int64))
