"""From a sample back to the documents it was made of and the files those came from, and from a document to its samples.

The order of samples is arithmetic that can be undone, so this needs no record of the run. Knows nothing of steps and
ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.conversation_dataset import SourceDataset
from megatron.data.gpt_dataset import Dataset, GPTDataset
from megatron.data.provenance import Provenance
from megatron.errors import DataError


@dataclass(frozen=True)
class DocumentSpan:
    """The part of one document in the window of a sample."""

    document: int
    tokens: range  # places in the window, before fill-in-the-middle
    first: int  # token of the document that stands at the first of these places
    num_document_tokens: int
    provenance: dict[str, str | None] | None  # None where the token file has no side file


@dataclass(frozen=True)
class TracedSample:
    """Where the tokens of one sample come from. Its window is one token longer than it: the last is only a label."""

    sample: int
    source: str  # the dataset of the blend
    prefix: str  # its token file
    spans: tuple[DocumentSpan, ...]


class Tracer:
    """Traces the samples of one set; opens the side file of each token file once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._provenance: dict[str, Provenance | None] = {}

    def trace(self, index: int) -> TracedSample:
        """Trace sample `index` of the set. Raises DataError for a side file that is damaged or another's."""
        source, index_within = self._dataset, index
        if isinstance(source, BlendedDataset):
            number, index_within = source.locate(index)
            source = source.datasets[number]
        assert isinstance(source, SourceDataset)
        spans: list[DocumentSpan] = []
        place = 0
        for piece in source.window(index_within):
            for span in self._spans(source, piece, place):
                spans.append(span)
            place += len(piece)
        return TracedSample(index, source.name, source.tokens.indexed.prefix, tuple(spans))

    def reads(self, name: str) -> bool:
        """Say whether the set reads a token file, by its path or its last part."""
        return any(_is_called(source.tokens.indexed.prefix, name) for source in self._sources())

    def samples_of(self, name: str, document: int, limit: int) -> list[int]:
        """Give the samples below limit that hold a part of a document of a token file, by its prefix or its last part.

        Raises DataError for a token file that the set does not read, or reads in whole conversations.
        """
        found: list[int] = []
        known = [source.tokens.indexed.prefix for source in self._sources()]
        for number, source in enumerate(self._sources()):
            indexed = source.tokens.indexed
            if not _is_called(indexed.prefix, name):
                continue
            if not isinstance(source, GPTDataset):
                raise DataError(f"{name} is read in whole conversations, which are not looked up")
            if not 0 <= document < indexed.num_documents:
                raise DataError(
                    f"{name} has no document {document}; its {indexed.num_documents} count from 0"
                )
            start, stop = (indexed.document_start(document + i) for i in (0, 1))
            if isinstance(self._dataset, BlendedDataset):
                own = self._dataset.counts(limit)[number]
                samples = source.samples_of(start, stop, own)
                found += [self._dataset.index(number, sample) for sample in samples]
            else:
                found += source.samples_of(start, stop, limit)
        if not any(_is_called(prefix, name) for prefix in known):
            raise DataError(f"the set reads no token file {name!r}, but {', '.join(known)}")
        return sorted(found)

    def _sources(self) -> list[SourceDataset]:
        """Give what reads each token file of the set."""
        blend = self._dataset
        sources = []
        for source in blend.datasets if isinstance(blend, BlendedDataset) else (blend,):
            assert isinstance(source, SourceDataset)
            sources.append(source)
        return sources

    def _spans(self, source: SourceDataset, piece: range, place: int) -> list[DocumentSpan]:
        """Cut consecutive tokens of a file, which stand in the window from `place` on, into documents."""
        indexed = source.tokens.indexed
        provenance = self._open(source)
        spans = []
        token = piece.start
        while token < piece.stop:
            document = indexed.document_at(token)
            start, stop = indexed.document_start(document), indexed.document_start(document + 1)
            end = min(stop, piece.stop)
            spans.append(
                DocumentSpan(
                    document,
                    range(place + token - piece.start, place + end - piece.start),
                    token - start,
                    stop - start,
                    None if provenance is None else provenance.row(document),
                )
            )
            token = end
        return spans

    def _open(self, source: SourceDataset) -> Provenance | None:
        indexed = source.tokens.indexed
        if indexed.prefix not in self._provenance:
            self._provenance[indexed.prefix] = Provenance.open(
                indexed.prefix, num_documents=indexed.num_documents
            )
        return self._provenance[indexed.prefix]


def _is_called(prefix: str, name: str) -> bool:
    """Say whether a name means a token file: its path, however it is written, or its last part."""
    return name in (prefix, Path(prefix).name) or Path(name).resolve() == Path(prefix).resolve()
