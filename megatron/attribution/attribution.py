"""All that is asked of a text, opened once: what stands where word for word, what is like it, and what it owes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from megatron.attribution import membership, similar, suffix_array, trace, word_index
from megatron.attribution.corpus import TokenFile
from megatron.attribution.notice import MIN_SHARE, licenses, notice
from megatron.attribution.spelling import Spelling
from megatron.tokenizer.interface import Tokenizer

SHOWN_PLACES = 10  # of a span that are looked at, at least


class Attribution:
    """Indexes of token files. Threads may share one: it answers one question at a time."""

    def __init__(
        self,
        files: Sequence[TokenFile],
        tokenizer: Tokenizer,
        kinds: Sequence[str],
        *,
        num_documents: int = 10,
        num_threads: int = 1,
    ) -> None:
        """Open the indexes of these kinds. Raises DataError for one that cannot be used."""
        self.files = tuple(files)
        self.spelling = Spelling(tokenizer)
        self._num_documents = num_documents
        self._lock = threading.Lock()
        self._membership, self._trace, self._similar = None, None, None
        if membership.KIND in kinds:
            self._membership = [membership.MembershipIndex(file.prefix) for file in files]
        if suffix_array.KIND in kinds:
            self._trace = trace.Trace(files, tokenizer, self.spelling, num_threads=num_threads)
        if word_index.KIND in kinds:
            self._similar = similar.Similar(files, self.spelling, num_threads=num_threads)

    def __call__(
        self, text: bytes, *, min_tokens: int = 1, most_spans: int | None = None
    ) -> dict[str, Any]:
        """Answer for a text, as JSON values: of each kind that is open, then `licenses` and `notice`.

        Spans have min_tokens ids at least; there are most_spans of them at most, the longest. Places are bytes of the
        text.
        """
        with self._lock:
            return self._answer(text, min_tokens, most_spans)

    def _answer(self, text: bytes, min_tokens: int, most_spans: int | None) -> dict[str, Any]:
        answer: dict[str, Any] = {"bytes": len(text)}
        if self._trace is not None:
            most = max(self._num_documents, SHOWN_PLACES)
            spans = self._trace(text, min_tokens=min_tokens, most=most, most_spans=most_spans)
            answer |= trace.to_json(text, spans, self.spelling, self._num_documents)
        if self._membership is not None:
            found = membership.ask(text, self._membership, self.files, self.spelling)
            answer["membership"] = found.to_json()
        if self._similar is not None:
            hits = self._similar(text.decode("utf-8", "replace"), self._num_documents)
            answer["similar"] = similar.to_json(hits)
        documents, near = answer.get("documents", []), answer.get("similar", [])
        named = {(one["dataset"], one["document"]) for one in documents}
        others = [
            one
            for one in near
            if (one["dataset"], one["document"]) not in named and one["share"] >= MIN_SHARE
        ]
        answer["licenses"] = licenses([*documents, *others])
        answer["notice"] = notice(documents, near)
        return answer
