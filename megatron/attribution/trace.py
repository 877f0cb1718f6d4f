"""Which runs of a text stand in token files, how often, and in which documents, by their suffix arrays.

The text becomes ids, and for every one of them the longest run from there on that stands somewhere is found; those
runs that no longer one contains are the spans. At the ends of a text ids differ from those of the document that it was
cut from, and where a document goes on otherwise, its ids may differ a little before. So spans are carried on to both
sides byte by byte, and are given in bytes of the text. Their counts are those of the run of ids.

An index of line starts knows runs that begin a line, and of a text those that begin at its start or at a line of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import IndexFile, check_spelling
from megatron.attribution.spelling import Spelling
from megatron.attribution.suffix_array import KIND
from megatron.attribution.threads import in_threads
from megatron.errors import DataError
from megatron.tokenizer.interface import Tokenizer

Ids = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Piece:
    """A part of a token file with its suffix array."""

    start: int
    tokens: npt.NDArray[np.integer]
    places: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint32]
    excluded: Ids  # tokens, [n, 2]


class TraceIndex:
    """The suffix array of one token file."""

    def __init__(self, file: TokenFile, spelling: Spelling) -> None:
        """Open PREFIX.trace. Raises DataError if it is missing, damaged, stale or of another tokenizer."""
        index = IndexFile.open(file.prefix, KIND)
        check_spelling(index.path, index.facts, spelling.sha256)
        self.file = file
        self.line_starts = index.fact("mode") == "line_starts"
        excluded = file.excluded_tokens
        self.pieces = []
        for number, (start, stop) in enumerate(index.fact("pieces")):
            inside = excluded.clip(start, stop) - start
            inside = inside[inside[:, 1] > inside[:, 0]]
            if int(np.diff(inside).sum()) == stop - start:
                continue  # a search would pass over every place of it, at each id of a text
            self.pieces.append(
                _Piece(
                    start,
                    file.dataset.tokens[start:stop],
                    index.array(f"places{number}"),
                    index.array(f"starts{number}"),
                    inside,
                )
            )


@dataclass(frozen=True)
class Occurrence:
    """A place in the data of a part of the text."""

    file: TokenFile
    document: int
    start: int  # bytes of the text
    stop: int
    first: int  # bytes of the document
    last: int


@dataclass(frozen=True)
class Span:
    """A part of the text, in bytes, that stands in the data, and some of the places."""

    start: int
    stop: int
    num_tokens: int
    count: int
    occurrences: tuple[Occurrence, ...]


class Trace:
    """Token files that texts are traced in, opened once."""

    def __init__(
        self,
        files: Sequence[TokenFile],
        tokenizer: Tokenizer,
        spelling: Spelling,
        *,
        num_threads: int = 1,
    ) -> None:
        """Open the suffix arrays. Raises DataError for one that cannot be used."""
        self.spelling = spelling
        self._tokenizer = tokenizer
        indexes = [TraceIndex(file, spelling) for file in files]
        self.pieces = [(index, piece) for index in indexes for piece in index.pieces]
        self._num_threads = min(num_threads, len(self.pieces))

    def __call__(
        self, text: bytes, *, min_tokens: int = 1, most: int = 10, most_spans: int | None = None
    ) -> list[Span]:
        """Give the spans of a text of at least min_tokens ids, in its order, each with up to `most` places.

        most_spans: of the longest runs of ids, which bounds the time that a text takes.
        """
        ids, edges = self._encode(text)
        found = self.runs(ids, min_tokens=min_tokens)
        longest = sorted(found, key=lambda run: run[0] - run[1])[:most_spans]
        found = sorted(longest)
        spans = [self._span(text, edges, ids, first, stop, most) for first, stop in found]
        return _without_contained(spans)

    def runs(self, ids: Ids, *, min_tokens: int = 1) -> list[tuple[int, int]]:
        """Give the runs [first, stop) of ids that stand in the data and that no longer such run contains."""
        lengths = np.zeros(len(ids), np.int64)
        for found in self._of_pieces(lambda index, piece: self._longest(index, piece, ids)):
            np.maximum(lengths, found, out=lengths)
        stops = np.arange(len(ids)) + lengths
        before = np.append(-1, np.maximum.accumulate(stops)[:-1]) if len(ids) else stops
        (first,) = np.nonzero((lengths >= max(min_tokens, 1)) & (stops > before))
        return [(int(i), int(stops[i])) for i in first]

    def holds(self, text: bytes, size: int) -> bool:
        """Say whether a part of a text of so many bytes stands in the data, of however few ids."""
        ids, edges = self._encode(text)
        sizes = {run: int(edges[run[1]] - edges[run[0]]) for run in self.runs(ids)}
        # a run is carried on by a token or two: one of half the size is far from enough
        return any(
            span.stop - span.start >= size
            for first, stop in sorted(sizes, key=lambda run: -sizes[run])
            if 2 * sizes[first, stop] >= size
            for span in [self._span(text, edges, ids, first, stop, 10)]
        )

    def count(self, ids: Ids, most: int = 0) -> tuple[int, list[tuple[TokenFile, int]]]:
        """Give how often ids stand in the data, and up to `most` of the places: token files and tokens."""
        from megatron.attribution import _suffix_search

        def find(index: TraceIndex, piece: _Piece) -> tuple[int, list[tuple[TokenFile, int]]]:
            count, places = _suffix_search.occurrences(
                piece.tokens, piece.places, piece.starts, piece.excluded, ids, most
            )
            return count, [(index.file, piece.start + place) for place in places.tolist()]

        total, places = 0, []
        for count, some in self._of_pieces(find):
            total += count
            places += some
        return total, places[:most]

    def _of_pieces(self, work: Callable[[TraceIndex, _Piece], Result]) -> Iterator[Result]:
        return in_threads(lambda pair: work(*pair), self.pieces, self._num_threads)

    def _encode(self, text: bytes) -> tuple[Ids, Ids]:
        """Give the ids of a text and where each ends in it. Raises DataError if ids do not give the text back."""
        try:
            ids = self._tokenizer.encode_batch([text.decode()])[0].astype(np.int64)
        except UnicodeDecodeError as error:
            raise DataError(
                f"the text is not UTF-8 ({error}), and ids are made of characters"
            ) from None
        if self.spelling.text.text(ids) != text:
            raise DataError(
                f"{self._tokenizer.name} does not give this text back as it was (a normaliser or an added space), so "
                "that places of ids are none of the text; take membership or search"
            )
        return ids, np.append(0, np.cumsum(self.spelling.sizes[ids]))

    def _longest(self, index: TraceIndex, piece: _Piece, ids: Ids) -> Ids:
        """Give the length of the longest run from each id on; 0 where the index does not know."""
        from megatron.attribution import _suffix_search

        positions = np.arange(len(ids))
        if index.line_starts:
            begins = np.append(True, self.spelling.ends_line[ids[:-1]])[: len(ids)]
            positions = positions[begins]
        result = np.zeros(len(ids), np.int64)
        result[positions] = _suffix_search.longest_matches(
            piece.tokens, piece.places, piece.starts, piece.excluded, ids, positions
        )
        return result

    def _span(self, text: bytes, edges: Ids, ids: Ids, first: int, stop: int, most: int) -> Span:
        """Look up a run of ids and carry it on byte by byte."""
        count, places = self.count(ids[first:stop], most)
        start, end = int(edges[first]), int(edges[stop])
        occurrences = []
        for file, place in places:
            dataset = file.dataset
            document = dataset.document_at(place)
            low, high = dataset.document_start(document), dataset.document_start(document + 1)
            left, right = self.spelling.text.extend(
                dataset.tokens, place, place + stop - first, low, high, text, start, end
            )
            before = len(self.spelling.text.text(dataset.tokens[low:place]))
            occurrences.append(
                Occurrence(
                    file,
                    document,
                    start - left,
                    end + right,
                    before - left,
                    before + end - start + right,
                )
            )
        occurrences.sort(key=lambda one: one.start - one.stop)  # the longest first
        longest = occurrences[:1]
        return Span(
            min([start, *(one.start for one in longest)]),
            max([end, *(one.stop for one in longest)]),
            stop - first,
            count,
            tuple(occurrences),
        )


def _without_contained(spans: Sequence[Span]) -> list[Span]:
    """Leave out spans that a longer one contains once both are carried on."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.stop)):
        if not kept or span.stop > kept[-1].stop:
            kept.append(span)
    return kept


def rank_documents(spans: Sequence[Span]) -> list[tuple[int, list[Occurrence]]]:
    """Give documents by how many bytes of the text stand in each, most first, with what stands where."""
    by_document: dict[tuple[str, int], list[Occurrence]] = defaultdict(list)
    for span in spans:
        for one in span.occurrences:
            by_document[one.file.prefix, one.document].append(one)
    ranked = [(_covered(found), found) for found in by_document.values()]
    return sorted(ranked, key=lambda entry: -entry[0])


def _covered(found: Sequence[Occurrence | Span]) -> int:
    """Give how many bytes of the text some parts of it cover."""
    total = end = 0
    for one in sorted(found, key=lambda one: one.start):
        total += max(0, one.stop - max(one.start, end))
        end = max(end, one.stop)
    return total


def to_json(text: bytes, spans: Sequence[Span], spelling: Spelling, most: int) -> dict[str, Any]:
    """Give spans and the documents that most of the text stands in as JSON values."""
    documents = []
    for covered, found in rank_documents(spans)[:most]:
        file, document = found[0].file, found[0].document
        parts = [
            {
                "start": one.start,
                "stop": one.stop,
                "lines": list(file.lines(document, one.first, one.last, spelling)),
            }
            for one in sorted(found, key=lambda one: (one.start, one.first))
        ]
        documents.append({**file.name(document), "covered_bytes": covered, "parts": parts})
    return {
        "bytes": len(text),
        "covered_bytes": _covered(spans),
        "spans": [
            {
                "start": span.start,
                "stop": span.stop,
                "tokens": span.num_tokens,
                "count": span.count,
                "documents": sorted({(one.file.prefix, one.document) for one in span.occurrences}),
            }
            for span in spans
        ],
        "documents": documents,
    }
