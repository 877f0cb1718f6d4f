"""The bytes that ids stand for, as attribution reads them.

Knows nothing of token files.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megatron.tokenizer.interface import Tokenizer

if TYPE_CHECKING:
    from megatron.attribution import _fingerprints


class Spelling:
    """The bytes of every id of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._names = {number: name.encode() for name, number in tokenizer.special_tokens.items()}
        self._tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]

    @functools.cached_property
    def sha256(self) -> str:
        """What tells these bytes from those of another tokenizer: quicker than the fingerprint of a whole tokenizer."""
        digest = hashlib.sha256(self.sizes.astype("<i8").tobytes() + b"".join(self._tokens))
        digest.update(repr(sorted(self._names.items())).encode())
        return digest.hexdigest()

    @functools.cached_property
    def text(self) -> _fingerprints.Spelling:
        """Text as it is compared: a sentinel is a newline, so that no run of text goes through one."""
        from megatron.attribution import _fingerprints

        is_sentinel = [token in self._names for token in range(len(self._tokens))]
        return _fingerprints.Spelling(self._tokens, is_sentinel)

    @functools.cached_property
    def formatted(self) -> _fingerprints.Spelling:
        """Text as it was formatted: a sentinel is its name."""
        from megatron.attribution import _fingerprints

        tokens = [self._names.get(token, spelled) for token, spelled in enumerate(self._tokens)]
        return _fingerprints.Spelling(tokens, [False] * len(tokens))

    @functools.cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many bytes each id stands for; 0 for a sentinel."""
        return np.array([len(token) for token in self._tokens], np.int64)

    @functools.cached_property
    def ends_line(self) -> npt.NDArray[np.bool_]:
        """Whether what follows an id stands on a new line: it has a newline in it, or is a sentinel."""
        return self.is_sentinel | np.array([b"\n" in token for token in self._tokens], bool)

    @functools.cached_property
    def is_sentinel(self) -> npt.NDArray[np.bool_]:
        """Whether an id is a sentinel's."""
        result = np.zeros(len(self._tokens), bool)
        result[list(self._names)] = True
        return result
