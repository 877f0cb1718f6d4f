"""What every tokenizer does, whatever library it stands on."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

# All ids of some texts back to back, int32 [ids], and how many are of each text, int64 [texts].
EncodedBatch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]


class Tokenizer(ABC):
    """Text to ids and back.

    `special_tokens` maps the spelling of each sentinel to its id. No text ever becomes one of these ids: text that
    spells a sentinel is encoded as any other text, and whoever wants the sentinel appends its id.
    """

    name: str
    vocab_size: int  # ids are 0 … vocab_size - 1
    eod: int  # ends a document
    special_tokens: Mapping[str, int]

    @property
    def eod_token(self) -> str:
        """Spell the sentinel that ends a document."""
        return next(name for name, number in self.special_tokens.items() if number == self.eod)

    @abstractmethod
    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text; nothing is added at its ends."""

    @abstractmethod
    def detokenize(self, ids: Sequence[int]) -> str:
        """Decode ids without clean-up; sentinels are spelled out, incomplete characters become U+FFFD."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Give the UTF-8 bytes that an id stands for, which may be part of a character; b"" for a sentinel."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Give the files that make this tokenizer, by name."""

    def save(self, folder: Path) -> None:
        """Write `files` into an existing folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    @abstractmethod
    def fingerprint(self) -> str:
        """Give the SHA-256, in hex, of all that decides which ids a text becomes."""

    def encode_batch(self, texts: Sequence[str | bytes]) -> EncodedBatch:
        """Encode texts, or their UTF-8, as `tokenize_batch` does, into arrays."""
        decoded = [text.decode() if isinstance(text, bytes) else text for text in texts]
        encoded = self.tokenize_batch(decoded)
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(itertools.chain(*encoded), np.int32, sizes.sum()), sizes

    def decode_bytes(self, ids: npt.NDArray[np.integer]) -> bytes:
        """Give the bytes of ids [n] of text: `token_bytes` of all of them. What a sentinel gives is not said."""
        return b"".join([self.token_bytes(token) for token in ids.tolist()])

    def tokenize(self, text: str) -> list[int]:
        """Encode one text; nothing is added at its ends."""
        return self.tokenize_batch([text])[0]
