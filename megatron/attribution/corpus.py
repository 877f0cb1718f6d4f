"""The token files that questions are put to: their documents, whose they are, and which of them are opted out.

Opt-out lists are those of training (`--exclude-documents`), applied when a question is put, so that no index is made
again. Knows nothing of indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.attribution.spelling import Spelling
from megatron.data.exclusion import exclude_documents
from megatron.data.indexed_dataset import IdArray, IndexedDataset
from megatron.data.origin import other_tokenizer
from megatron.data.provenance import Provenance
from megatron.data.token_range import Runs, token_positions
from megatron.errors import DataError
from megatron.tokenizer.interface import Tokenizer

CHUNK_DOCUMENTS = 1 << 14
CHUNK_TOKENS = 1 << 20
HEAD_TOKENS = 512  # in which metadata stands
# What formatting writes before a file's own text: a line of these (StarCoder §5.1).
METADATA = re.compile(rb"(?:<reponame>|<filename>|<gh_stars>)[^\n]*\n")


@dataclass(frozen=True)
class TokenFile:
    """A token file with what is known of its documents."""

    dataset: IndexedDataset
    provenance: Provenance | None
    excluded: Runs  # documents that are opted out

    @property
    def prefix(self) -> str:
        return self.dataset.prefix

    @property
    def excluded_tokens(self) -> Runs:
        """Where the documents that are opted out lie."""
        return token_positions(self.dataset, self.excluded)

    def chunks(self, runs: Runs | None = None) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Give the documents of runs, or all, as (first token, the end of each), a bounded number at a time.

        A chunk has at most 2^20 tokens, or one document. Ends count from its first token.
        """
        whole = np.array([[0, self.dataset.num_documents]], np.int64)
        for first, stop in (whole if runs is None else runs).tolist():
            while first < stop:
                numbers = np.arange(first, min(first + CHUNK_DOCUMENTS, stop) + 1)
                edges = token_positions(self.dataset, numbers)
                fitting = int(np.searchsorted(edges, edges[0] + CHUNK_TOKENS, "right")) - 1
                count = max(fitting, 1)
                yield int(edges[0]), edges[1 : count + 1] - edges[0]
                first += count

    def name(self, document: int) -> dict[str, Any]:
        """Name a document as JSON values: its token file, its number, and what its provenance says."""
        row = None if self.provenance is None else self.provenance.row(document)
        return {"dataset": self.prefix, "document": document, "provenance": row}

    def lines(self, document: int, first: int, stop: int, spelling: Spelling) -> tuple[int, int]:
        """Give the lines, from 1, of bytes first to stop of a document, in the file that it was made of."""
        tokens = self._tokens(document)
        text = spelling.text.text(tokens[: stop + HEAD_TOKENS])  # an id has a byte at least
        body = _body(tokens, text, spelling)
        inside = text[max(first, body) : stop]
        shown = inside.strip(b"\n")
        line = text[body:first].count(b"\n") + inside.find(shown) + 1
        return line, line + shown.count(b"\n")

    def source(self, document: int, spelling: Spelling) -> str:
        """Give the text of the file that a document was made of, as far as its ids have it."""
        tokens = self._tokens(document)
        text = spelling.text.text(tokens)
        end = len(text) - (len(tokens) > 0 and bool(spelling.is_sentinel[tokens[-1]]))
        return text[_body(tokens, text, spelling) : end].decode("utf-8", "replace")

    def is_excluded(self, document: int) -> bool:
        """Say whether a document is opted out."""
        run = int(np.searchsorted(self.excluded[:, 0], document, "right")) - 1
        return run >= 0 and document < int(self.excluded[run, 1])

    def _tokens(self, document: int) -> IdArray:
        start, end = (self.dataset.document_start(document + i) for i in (0, 1))
        return self.dataset.tokens[start:end]


def _body(tokens: IdArray, text: bytes, spelling: Spelling) -> int:
    """Give where a document's own text begins: behind the line of metadata that formatting may have put first."""
    metadata = METADATA.match(spelling.formatted.text(tokens[:HEAD_TOKENS]))
    body = 0
    if metadata is not None:
        num_sentinels = metadata[0].count(b"<") if spelling.is_sentinel[tokens[0]] else 0
        for _ in range(1 + num_sentinels):
            body = text.find(b"\n", body) + 1
    return body


def prefix_of(given: str) -> str:
    """Give the prefix of a token file, which a shell's pattern names with .idx or .bin."""
    return given[:-4] if given.endswith((".idx", ".bin")) else given


def open_token_files(
    prefixes: Sequence[str], *, opt_out: Sequence[str] = (), skipped: Sequence[str] = ()
) -> list[TokenFile]:
    """Open token files and apply opt-out lists to them. Raises DataError for what is missing, damaged or undecided."""
    datasets = {prefix: IndexedDataset(prefix) for prefix in prefixes}
    exclusions = exclude_documents(opt_out, datasets, skipped=skipped)
    return [
        TokenFile(
            dataset,
            Provenance.open(prefix, num_documents=dataset.num_documents),
            exclusions.of(prefix),
        )
        for prefix, dataset in datasets.items()
    ]


def require_tokenizer(file: TokenFile, tokenizer: Tokenizer) -> None:
    """Raise DataError unless this is the tokenizer that ids are of, where that is recorded, and ends every document.

    Without an end of each a match could lead from one document into the next.
    """
    other = other_tokenizer(file.prefix, tokenizer.fingerprint())
    if other is not None:
        raise DataError(
            f"{file.prefix} was made with another tokenizer than {tokenizer.name}, by its fingerprint "
            f"{other}; give the one that preprocessed it"
        )
    for start, ends in file.chunks():
        sizes = np.diff(ends, prepend=0)
        last = file.dataset.tokens[start + ends[sizes > 0] - 1]
        if (last != tokenizer.eod).any():
            place = start + int(ends[sizes > 0][int(np.argmax(last != tokenizer.eod))]) - 1
            raise DataError(
                f"{file.prefix}: document {file.dataset.document_at(place)} does not end in id {tokenizer.eod}, the "
                "tokenizer's end of a document, so that a match could lead from one into the next; preprocess with "
                "--append-eod"
            )
