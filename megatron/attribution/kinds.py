"""The kinds of index that there are: what builds each, and how it is known to be up to date. A new kind is a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.attribution import membership, suffix_array, word_index
from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import Index, IndexFile
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling

Progress = Callable[[int], object]


@dataclass(frozen=True)
class IndexKind:
    """One kind of index; it lies in PREFIX.NAME."""

    help: str
    # Writes the index, telling the last argument of tokens as they are done, and gives its header's facts.
    build: Callable[[TokenFile, Spelling, BuildOptions, Progress], dict[str, Any]]
    wanted: Callable[[BuildOptions], dict[str, Any]]  # what the header says if it is up to date
    num_passes: Callable[[TokenFile, BuildOptions], int]  # over the tokens, for the bar
    memory: Callable[[TokenFile, BuildOptions], int]  # bytes that building takes
    open: Callable[[str], Index]  # of a prefix; DataError if it is missing, damaged or stale


KINDS: dict[str, IndexKind] = {
    membership.KIND: IndexKind(
        "fingerprints of all text: whether a text stands in the data",
        membership.build,
        membership.wanted,
        membership.num_passes,
        membership.memory,
        lambda prefix: IndexFile.open(prefix, membership.KIND),
    ),
    suffix_array.KIND: IndexKind(
        "a suffix array of all tokens: which parts of a text stand where, and how often",
        suffix_array.build,
        suffix_array.wanted,
        lambda file, options: 1,
        suffix_array.memory,
        lambda prefix: IndexFile.open(prefix, suffix_array.KIND),
    ),
    word_index.KIND: IndexKind(
        "the words of all documents: which are like a text",
        word_index.build,
        word_index.wanted,
        lambda file, options: 1,
        word_index.memory,
        word_index.open_index,
    ),
}
