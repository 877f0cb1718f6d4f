"""A random order for more documents than memory holds, with sequential reading and writing only.

Every document has 64 random bits, which are a function of (seed, its number); the order is theirs. Documents are
dealt into files by the first bits, then each file is read whole and sorted by the rest; one that is too large is
dealt again. Knows nothing of text.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron.data.permutation import keyed_word, random_words
from megatron.data.preprocessing.documents import Documents, join_documents

BUCKET_BITS = 7  # 128 files are open at a time, for each level of dealing
GATHERED_BYTES = 32 << 20  # in memory, dealt at a time, so that a file gets 256 KB at once
SORTED_BYTES = 64 << 20  # in memory, sorted at a time: 8 GB are dealt once, 1 TB twice
PIECE_DOCUMENTS = 1 << 10  # given back at a time

Words = npt.NDArray[np.uint64]


class DocumentShuffler:
    """Takes documents in the order of the input, gives them back in that of their random bits.

    Holds about 150 MB whatever it is given, and the rest in unnamed files, which vanish with the process.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        gathered_bytes: int = GATHERED_BYTES,
        sorted_bytes: int = SORTED_BYTES,
    ) -> None:
        """Start; the files lie in `folder`, which should have space for all documents."""
        self._word = keyed_word(seed, "shuffle documents")
        self._num_documents = 0
        self._sorted_bytes = sorted_bytes
        self._deal = _Deal(folder, 0, gathered_bytes)

    def __enter__(self) -> DocumentShuffler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deal.close()

    def add(self, documents: Documents) -> None:
        """Take the next documents."""
        numbers = np.arange(self._num_documents, self._num_documents + len(documents))
        self._num_documents += len(documents)
        self._deal.add(documents, random_words(self._word, numbers))

    def in_order(self) -> Iterator[Documents]:
        """Give all documents in random order; files are freed as it goes. May be called once."""
        yield from _sorted(self._deal, self._sorted_bytes)


class _Deal:
    """One file for each value of BUCKET_BITS of the random words; `level` says which bits."""

    def __init__(self, folder: Path, level: int, gathered_bytes: int) -> None:
        self.folder = folder
        self.level = level
        self.gathered_bytes = gathered_bytes
        self.num_bytes = [0] * (1 << BUCKET_BITS)
        self.num_documents = [0] * (1 << BUCKET_BITS)
        self._files: dict[int, BinaryIO] = {}
        self._gathered: list[tuple[Documents, Words]] = []
        self._num_gathered_bytes = 0

    @property
    def is_last(self) -> bool:
        """Say whether no bits are left to deal by."""
        return (self.level + 2) * BUCKET_BITS > 64

    def add(self, documents: Documents, words: Words) -> None:
        """Take documents and their words."""
        if not len(documents):
            return
        self._gathered.append((documents, words))
        self._num_gathered_bytes += documents.memory_bytes + words.nbytes
        if self._num_gathered_bytes >= self.gathered_bytes:
            self.flush()

    def flush(self) -> None:
        """Deal what was gathered."""
        if not self._gathered:
            return
        documents = join_documents([documents for documents, _ in self._gathered])
        words = np.concatenate([words for _, words in self._gathered])
        self._gathered, self._num_gathered_bytes = [], 0
        buckets = words >> np.uint64(64 - BUCKET_BITS * (self.level + 1))
        buckets &= np.uint64((1 << BUCKET_BITS) - 1)
        order = np.argsort(buckets, kind="stable")
        buckets, words = buckets[order], words[order]
        documents = documents.take(order)
        present, begins = np.unique(buckets, return_index=True)
        bounds = np.append(begins, len(buckets))
        for i, part in enumerate(documents.cut(bounds)):
            bucket, part_words = int(present[i]), words[bounds[i] : bounds[i + 1]]
            self.num_bytes[bucket] += part.memory_bytes + part_words.nbytes
            self.num_documents[bucket] += len(part)
            if bucket not in self._files:
                self._files[bucket] = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
            pickle.dump((part, part_words), self._files[bucket], protocol=5)

    def take(self, bucket: int) -> Iterator[tuple[Documents, Words]]:
        """Give what was dealt to a bucket, in the order it came, then free its file."""
        file = self._files.pop(bucket, None)
        if file is None:
            return
        with file:
            end = file.tell()
            file.seek(0)
            while file.tell() < end:
                yield pickle.load(file)

    def close(self) -> None:
        """Free all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _sorted(deal: _Deal, sorted_bytes: int) -> Iterator[Documents]:
    """Give the documents of a deal in the order of their words."""
    deal.flush()
    for bucket, num_bytes in enumerate(deal.num_bytes):
        if num_bytes > sorted_bytes and deal.num_documents[bucket] > 1 and not deal.is_last:
            finer = _Deal(deal.folder, deal.level + 1, deal.gathered_bytes)
            try:
                for documents, words in deal.take(bucket):
                    finer.add(documents, words)
                yield from _sorted(finer, sorted_bytes)
            finally:
                finer.close()
            continue
        parts = list(deal.take(bucket))
        if not parts:
            continue
        documents = join_documents([documents for documents, _ in parts])
        # Stable: where two words are equal, the order of the input decides.
        order = np.argsort(np.concatenate([words for _, words in parts]), kind="stable")
        del parts
        documents = documents.take(order)
        bounds = np.append(np.arange(0, len(order), PIECE_DOCUMENTS), len(order))
        yield from documents.cut(bounds)
