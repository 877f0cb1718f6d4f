"""Counts of a run by stage, rule and language, which add up: read = kept + dropped by every rule.

Knows nothing of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from megatron.curation.run.document import Entry

Key = tuple[str, str, str, str]  # stage, verdict, rule, language


@dataclass
class Totals:
    """What became of the documents of a shard, of a run, or of several runs one after the other."""

    num_read: int = 0  # documents that the first stage was given
    bytes_read: int = 0
    bytes_written: int = 0  # on disk
    bad: Counter[str] = field(default_factory=Counter)  # records that are no documents, by reason
    documents: Counter[Key] = field(default_factory=Counter)
    num_bytes: Counter[Key] = field(default_factory=Counter)  # of the texts when they were decided

    def note(self, entry: Entry) -> None:
        """Count one decision."""
        key = (entry.stage, entry.verdict, entry.rule, entry.language)
        self.documents[key] += 1
        self.num_bytes[key] += entry.num_bytes

    def add(self, other: Totals) -> None:
        """Count what another shard counted."""
        self.num_read += other.num_read
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written
        self.bad += other.bad
        self.documents += other.documents
        self.num_bytes += other.num_bytes

    def follow(self, later: Totals) -> None:
        """Go on with the counts of the pass that read what this one kept."""
        assert self.kept() == later.num_read, "a pass reads what the one before it kept"
        for counts in (self.documents, self.num_bytes):
            for key in [key for key in counts if key[1] == "kept"]:
                del counts[key]
        self.documents += later.documents
        self.num_bytes += later.num_bytes
        self.bad += later.bad
        self.bytes_written = later.bytes_written

    def kept(self) -> int:
        """Count the documents that were kept."""
        return sum(count for key, count in self.documents.items() if key[1] == "kept")

    def dropped(self) -> int:
        """Count the documents that a rule dropped."""
        return sum(count for key, count in self.documents.items() if key[1] == "dropped")

    def bytes_kept(self) -> int:
        """Count the bytes of the texts that were kept, as UTF-8."""
        return sum(count for key, count in self.num_bytes.items() if key[1] == "kept")

    def adds_up(self) -> bool:
        """Say whether every document that was read was either kept or dropped."""
        return self.num_read == self.kept() + self.dropped()

    def by_rule(self, verdict: str = "dropped") -> list[tuple[str, int, int]]:
        """Give (stage: rule, documents, bytes) of a verdict, the most documents first."""
        return _grouped(
            (f"{key[0]}: {key[2]}", self.documents[key], self.num_bytes[key])
            for key in self.documents
            if key[1] == verdict
        )

    def by_language(self, verdict: str) -> dict[str, tuple[int, int]]:
        """Give documents and bytes of a verdict by language, "" where none is known."""
        rows = _grouped(
            (key[3], self.documents[key], self.num_bytes[key])
            for key in self.documents
            if key[1] == verdict
        )
        return {name: (documents, num_bytes) for name, documents, num_bytes in rows}

    def describe(self) -> str:
        """Say in one line what became of every record."""
        reasons = ", ".join(f"{count:,} {rule}" for rule, count, _ in self.by_rule())
        line = (
            f"{self.num_read + self.bad.total():,} records = {self.kept():,} kept + {self.dropped():,} dropped"
            + (f" ({reasons})" if reasons else "")
            + f" + {self.bad.total():,} bad"
        )
        if self.bad:
            line += (
                " (" + ", ".join(f"{n:,} {reason}" for reason, n in self.bad.most_common()) + ")"
            )
        if changes := self.by_rule("changed"):
            line += "; changed: " + ", ".join(f"{count:,} {rule}" for rule, count, _ in changes)
        share = f" ({self.bytes_kept() / self.bytes_read:.1%})" if self.bytes_read else ""
        return f"{line}; {self.bytes_kept() / 1e6:,.1f} MB of {self.bytes_read / 1e6:,.1f} MB of text{share}"

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` reads, in a fixed order."""
        return {
            "num_read": self.num_read,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bad": dict(sorted(self.bad.items())),
            "decisions": [
                {
                    **dict(zip(("stage", "verdict", "rule", "language"), key, strict=True)),
                    "documents": self.documents[key],
                    "bytes": self.num_bytes[key],
                }
                for key in sorted(self.documents)
            ],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Totals:
        """Read what `to_json` gave."""
        totals = cls(content["num_read"], content["bytes_read"], content["bytes_written"])
        totals.bad.update(content["bad"])
        for row in content["decisions"]:
            key = (row["stage"], row["verdict"], row["rule"], row["language"])
            totals.documents[key] = row["documents"]
            totals.num_bytes[key] = row["bytes"]
        return totals


def weighted_sum(parts: Iterable[tuple[Totals, float, float]]) -> Totals:
    """Add up so many times the documents and so many times the bytes of each part.

    Rounded, so that they no longer add up to the last document.
    """
    whole = Totals()
    for totals, documents, num_bytes in parts:
        whole.num_read += totals.num_read * documents  # type: ignore[assignment]
        whole.bytes_read += totals.bytes_read * num_bytes  # type: ignore[assignment]
        for counts, found, factor in (
            (whole.bad, totals.bad, documents),
            (whole.documents, totals.documents, documents),
            (whole.num_bytes, totals.num_bytes, num_bytes),
        ):
            for key, count in found.items():
                counts[key] += count * factor  # type: ignore[assignment, index]
    for counts in (whole.bad, whole.documents, whole.num_bytes):
        for key, count in [*counts.items()]:
            counts[key] = round(count)
    whole.num_read, whole.bytes_read = round(whole.num_read), round(whole.bytes_read)
    return whole


def _grouped(rows: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    documents: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for name, count, size in rows:
        documents[name] += count
        num_bytes[name] += size
    ordered = sorted(documents, key=lambda name: (-documents[name], name))
    return [(name, documents[name], num_bytes[name]) for name in ordered]
