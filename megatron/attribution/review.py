"""Generated text on its way out: what of it stands in the training data word for word, and whether that is too much."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megatron.attribution import suffix_array
from megatron.attribution.attribution import Attribution
from megatron.attribution.corpus import open_token_files, prefix_of
from megatron.attribution.options import ReviewOptions
from megatron.attribution.trace import Trace
from megatron.data.token_range import NO_RUNS
from megatron.tokenizer.interface import Tokenizer

MIN_TOKENS = 16  # of a run that is named
PROBE = "def f():\n    return 0\n"


@dataclass(frozen=True)
class Review:
    """What a text owes."""

    answer: dict[str, Any]  # of `Attribution`, and `longest_bytes`
    is_too_much: bool  # as much as is withheld

    def lines(self) -> list[str]:
        """Say it for people; nothing where nothing was found."""
        if not self.answer["spans"]:
            return []
        longest, found = self.answer["longest_bytes"], self.answer["notice"].rstrip("\n")
        return [f"up to {longest:,} bytes in a row stand in the training data", *found.split("\n")]


class Reviewer:
    """Token files that texts are looked up in.

    What is opted out is not named, and withheld as all else is: a model that was trained before may still write it.
    """

    def __init__(self, options: ReviewOptions, tokenizer: Tokenizer) -> None:
        """Open the indexes. Raises DataError for one that cannot be used, or a tokenizer that changes texts."""
        files = open_token_files(
            list(map(prefix_of, options.attribution)), opt_out=options.exclude_documents
        )
        self.attribution = Attribution(files, tokenizer, [suffix_array.KIND])
        self.withholds = options.verbatim == "withhold"
        self._limit = options.verbatim_bytes
        whole = [replace(file, excluded=NO_RUNS) for file in files]
        self._everything = Trace(whole, tokenizer, self.attribution.spelling)
        self(PROBE)

    def __call__(self, text: str) -> Review:
        """Look a text up. Half of a surrogate pair, which is no text, counts as a question mark."""
        encoded = text.encode("utf-8", "replace")
        answer = self.attribution(encoded, min_tokens=MIN_TOKENS)
        longest = max((span["stop"] - span["start"] for span in answer["spans"]), default=0)
        answer["longest_bytes"] = longest
        is_too_much = self.withholds and self._everything.holds(encoded, self._limit)
        return Review(answer, is_too_much)
