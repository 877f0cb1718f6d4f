"""What the measurements of one run share: the text, the vocabulary, a folder, and how often to measure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.tokenizer.json_tokenizer import JsonTokenizer
from megatron.tokenizer.special_tokens import EOD

SEQ_LENGTH = 8192  # StarCoder §5.4


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    texts: list[str]
    definition: dict[str, Any]  # of tokenizer.json
    folder: Path  # for what is written
    rounds: int
    num_documents: int  # of the synthetic dataset
    megatron_lm: Path | None = None  # checkouts whose tools are timed
    bigcode: Path | None = None
    peer_python: str = sys.executable  # with which they run; their packages are named megatron, too

    @property
    def megabytes(self) -> float:
        """The text as UTF-8, in 10^6 bytes."""
        return sum(len(text.encode()) for text in self.texts) / 1e6

    def tokenizer(self) -> JsonTokenizer:
        return JsonTokenizer("bench", self.definition, eod=EOD)

    def packed(self) -> npt.NDArray[np.uint16]:
        """Give all texts as ids, each with its end-of-document token."""
        tokenizer = self.tokenizer()
        ids, sizes = tokenizer.encode_batch(self.texts)
        return np.insert(ids, np.cumsum(sizes), tokenizer.eod).astype(np.uint16)
