"""`PREFIX.search`: which documents are like a text, by BM25 over their words. One SQLite file, or tantivy's folder.

Words are indexed and not the text, which is in the token file. A snippet of code holds many words that are in every
file, so the best documents are then compared with it line by line (`megatron.attribution.ranking`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import Index, check_is_of, index_path
from megatron.attribution.options import BuildOptions
from megatron.attribution.search import BUILD_CACHE_KIB, Candidate, SearchIndex, build_search
from megatron.attribution.spelling import Spelling
from megatron.attribution.tantivy_search import TantivyIndex, build_tantivy
from megatron.data.content import FileContent, content_of
from megatron.whole_file import publish_whole, remove

KIND = "search"
WORKING_BYTES = 100_000_000  # beside the cache of words


class WordIndex(Index, Protocol):
    """What both engines give."""

    def candidates(self, text: str, limit: int) -> list[Candidate]:
        """Give the documents with the best BM25 for a text, the best first."""


def wanted(options: BuildOptions) -> dict[str, Any]:
    """Give what an index says of itself if it was built with such options."""
    return {"engine": options.search_engine}


def memory(file: TokenFile, options: BuildOptions) -> int:
    """Give the bytes that building takes."""
    return BUILD_CACHE_KIB * 1024 + WORKING_BYTES


def open_index(prefix: str) -> WordIndex:
    """Open PREFIX.search. Raises DataError if it is missing, damaged or of another token file."""
    path = index_path(prefix, KIND)
    index: WordIndex = TantivyIndex(path) if path.is_dir() else SearchIndex(path)
    check_is_of(path, FileContent(**index.facts["dataset"]), prefix, KIND)
    return index


def build(
    file: TokenFile, spelling: Spelling, options: BuildOptions, on_tokens: Callable[[int], object]
) -> dict[str, Any]:
    """Write PREFIX.search, and give its facts."""
    path = index_path(file.prefix, KIND)
    aside = Path(f"{path}.tmp")
    remove(aside)
    facts = {
        "kind": KIND,
        "engine": options.search_engine,
        "dataset": asdict(content_of(file.prefix)),
        "documents": file.dataset.num_documents,
        "spelling": spelling.sha256,
    }
    build_with = build_tantivy if options.search_engine == "tantivy" else build_search
    try:
        build_with(aside, _texts(file, spelling, on_tokens), facts)
        publish_whole(aside, path)
    finally:
        remove(aside)
    return facts


def _texts(
    file: TokenFile, spelling: Spelling, on_tokens: Callable[[int], object]
) -> Iterator[tuple[int, str]]:
    """Give all documents with their numbers."""
    number = 0
    for start, ends in file.chunks():
        tokens = file.dataset.tokens[start : start + int(ends[-1])]
        first = 0
        for end in ends.tolist():
            yield number, spelling.text.text(tokens[first:end]).decode("utf-8", "replace")
            number, first = number + 1, end
        on_tokens(first)
