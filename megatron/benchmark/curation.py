"""What the measurements of curation share: the documents, and time as a core's own.

Other processes of the machine do not count. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron.benchmark.measure import Timed, core_seconds, timed
from megatron.curation.run.document import Document


@dataclass(frozen=True)
class Curation:
    """What the measurements share."""

    documents: list[Document]
    folder: Path
    rounds: int

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def megabytes(self) -> float:
        return megabytes_of(self.texts)


def core_timed(work: Callable[[], object]) -> Timed:
    """Make a call one that gives its seconds of a core, those of its workers too: what core-hours are counted in."""
    return timed(work, core_seconds)


def megabytes_of(texts: Iterable[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6
