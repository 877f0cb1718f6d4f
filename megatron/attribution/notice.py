"""What a text owes: repository, path and licence of the documents it stands in, and a notice to ship with it.

Provenance has fields that whoever preprocessed named; those of common corpora are known here. Knows nothing of indexes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Fields that say the same, the first that is there counts: ours, GitHub's, The Stack's.
REPOSITORY = ("repo", "repository", "repo_name", "repository_name", "max_stars_repo_name")
PATH = ("path", "file_path", "filename", "max_stars_repo_path")
LICENSE = ("license", "licenses", "license_type", "detected_licenses", "max_stars_repo_licenses")
NOT_KNOWN = "licence not known"
MIN_SHARE = 0.5  # of a text's lines from which on a document that is like it is named in a notice


@dataclass(frozen=True)
class Source:
    """What is known of where a document came from; empty for what is not."""

    repository: str
    path: str
    license: str

    @classmethod
    def of(cls, provenance: Mapping[str, str | None] | None) -> Source:
        """Read a row of provenance."""
        values = provenance or {}

        def first(names: Sequence[str]) -> str:
            return next((text for name in names if (text := _text(values.get(name)))), "")

        return cls(first(REPOSITORY), first(PATH), first(LICENSE))


def licenses(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count documents of an answer by licence, the most frequent first."""
    counts: dict[str, int] = {}
    for document in documents:
        name = Source.of(document["provenance"]).license or NOT_KNOWN
        counts[name] = counts.get(name, 0) + 1
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [{"license": name, "documents": count} for name, count in ranked]


def notice(documents: Sequence[Mapping[str, Any]], similar: Sequence[Mapping[str, Any]]) -> str:
    """Write the notice: each source once, by repository, with lines and licence; "" for no source."""
    entries: dict[tuple[str, int], tuple[Source, str, list[list[int]]]] = {}
    near = [one for one in similar if one["share"] >= MIN_SHARE]
    for one in [*documents, *near]:
        lines = [part["lines"] for part in one["parts"]] if "parts" in one else [one["lines"]]
        number = f"document {one['document']} of {one['dataset']}"
        key = (one["dataset"], one["document"])
        if key not in entries:
            entries[key] = (Source.of(one["provenance"]), number, lines)
    if not entries:
        return ""
    text = ["This work has parts that also stand in:", ""]
    for source, number, lines in sorted(
        entries.values(), key=lambda entry: (entry[0].repository, entry[0].path, entry[1])
    ):
        name = ", ".join(filter(None, (source.repository, source.path))) or number
        spelled = sorted({f"{first}-{last}" for first, last in lines}, key=_first_number)
        text += [f"  {name}, lines {', '.join(spelled)}", f"    {source.license or NOT_KNOWN}"]
    return "\n".join(text) + "\n"


def _first_number(lines: str) -> int:
    return int(lines.split("-")[0])


def _text(value: str | None) -> str:
    """Give a value on one line; a JSON list, as The Stack has of licences, with commas."""
    if not value:
        return ""
    if value.startswith("["):
        try:
            items = json.loads(value)
        except ValueError:
            items = None
        if isinstance(items, list):
            value = ", ".join(map(str, items))
    return " ".join(value.split())
