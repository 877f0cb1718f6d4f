"""Documents that are like a text, from all token files: candidates by their words, then compared line by line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import check_spelling
from megatron.attribution.ranking import LineRanking
from megatron.attribution.search import Candidate
from megatron.attribution.spelling import Spelling
from megatron.attribution.threads import in_threads
from megatron.attribution.word_index import WordIndex, open_index

NUM_COMPARED = 50  # candidates of a token file that are read


@dataclass(frozen=True)
class Hit:
    """A document that is like the text."""

    file: TokenFile
    document: int
    score: float  # BM25 within its token file
    share: float  # of the text's lines that stand there together, by characters
    lines: tuple[int, int]  # of the document's file, from 1, where most of it stands


class Similar:
    """Token files that are searched, opened once."""

    def __init__(
        self, files: Sequence[TokenFile], spelling: Spelling, *, num_threads: int = 1
    ) -> None:
        """Open the indexes of words. Raises DataError for one that cannot be used."""
        self._pairs = [(file, open_index(file.prefix)) for file in files]
        for _, index in self._pairs:
            check_spelling(index.path, index.facts, spelling.sha256)
        self._spelling = spelling
        self._num_threads = min(num_threads, len(self._pairs))

    def __call__(self, text: str, most: int) -> list[Hit]:
        """Give the documents that are most like a text, the best first: by shared lines, then by BM25."""
        ranking = LineRanking(text)

        def find(pair: tuple[TokenFile, WordIndex]) -> list[Hit]:
            file, index = pair
            found = _allowed(file, lambda limit: index.candidates(text, limit), NUM_COMPARED)
            hits = [self._compare(file, candidate, ranking) for candidate in found]
            return [hit for hit in hits if hit is not None]

        found = in_threads(find, self._pairs, self._num_threads)
        hits = [hit for of_file in found for hit in of_file]
        hits.sort(key=lambda hit: (-hit.share, -hit.score))
        if hits and hits[0].share > 0:  # others share words alone
            hits = [hit for hit in hits if hit.share > 0]
        return hits[:most]

    def _compare(self, file: TokenFile, candidate: Candidate, ranking: LineRanking) -> Hit | None:
        document = candidate.document
        start, stop = (file.dataset.document_start(document + i) for i in (0, 1))
        raw = self._spelling.text.text(file.dataset.tokens[start:stop])
        place = ranking.place_in(raw.decode("utf-8", "replace"))
        if place is None:
            return None
        lines = raw.split(b"\n")
        first = sum(len(line) + 1 for line in lines[: place.first_line - 1])
        size = sum(len(line) + 1 for line in lines[place.first_line - 1 : place.last_line])
        shown = file.lines(document, first, first + size - 1, self._spelling)
        return Hit(file, document, candidate.score, place.share, shown)


def _allowed(
    file: TokenFile, ask: Callable[[int], list[Candidate]], wanted: int
) -> list[Candidate]:
    """Give the best candidates that are not opted out, asking for more until there are enough or no more."""
    limit = wanted
    while True:
        found = ask(limit)
        allowed = [one for one in found if not file.is_excluded(one.document)]
        if len(allowed) >= wanted or len(found) < limit:
            return allowed[:wanted]
        limit *= 4


def to_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Give hits as JSON values."""
    return [
        {
            **hit.file.name(hit.document),
            "share": round(hit.share, 4),
            "score": round(hit.score, 4),
            "lines": list(hit.lines),
        }
        for hit in hits
    ]
