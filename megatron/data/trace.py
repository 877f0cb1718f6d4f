"""From a sample back to the documents it was made of, and to the files those came from.

The order of samples is arithmetic, so this needs no record of the run: it finds the window of a sample as reading
does, and looks up what lies there. Knows nothing of steps and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.conversation_dataset import SourceDataset
from megatron.data.gpt_dataset import Dataset
from megatron.data.provenance import Provenance


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
