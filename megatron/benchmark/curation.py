"""What the measurements of curation share: the documents, and time as a core's own.

Other processes of the machine do not count. Knows nothing of what is measured.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron.benchmark.measure import Timed
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

    def run() -> float:
        gc.collect()
        start = core_seconds()
        work()
        return core_seconds() - start

    return run


def core_seconds() -> float:
    """Give what this process, and those it has waited for, have taken so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def megabytes_of(texts: Iterable[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6
