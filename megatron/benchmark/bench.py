"""What the measurements of one run share: the text, the vocabulary, a folder, and how often to measure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.data.indexed_dataset import id_dtype
from megatron.errors import DataError
from megatron.tokenizer.json_tokenizer import JsonTokenizer
from megatron.tokenizer.special_tokens import EOD, STARCODER_SPECIAL_TOKENS

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

    def check(self) -> None:
        """Raise DataError unless the vocabulary is like StarCoder's, which some peers are set up for by hand."""
        stages = (self.definition.get("pre_tokenizer") or {}).get("pretokenizers") or []
        added = [(token["id"], token["content"]) for token in self.definition["added_tokens"]]
        if added != list(enumerate(STARCODER_SPECIAL_TOKENS)) or [s["type"] for s in stages] != [
            "Digits",
            "ByteLevel",
        ]:
            raise DataError(
                "--tokenizer-file: both sides are measured under StarCoder's sentinels, at ids 0 to 18, and its "
                "pre-tokenizer; give a file that tools/train_tokenizer.py made, or none to have one trained"
            )

    def packed(self, max_characters: int | None = None) -> npt.NDArray[np.integer]:
        """Give all texts as ids, each with its end-of-document token; cut into documents of at most so long."""
        tokenizer = self.tokenizer()
        step = max_characters or max(map(len, self.texts))
        documents = [
            text[start : start + step] for text in self.texts for start in range(0, len(text), step)
        ]
        ids, sizes = tokenizer.encode_batch(documents)
        return np.insert(ids, np.cumsum(sizes), tokenizer.eod).astype(
            id_dtype(tokenizer.vocab_size)
        )
