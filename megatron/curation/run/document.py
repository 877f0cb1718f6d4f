"""What a stage is given and what it answers: a document in, a verdict out. Stages are pure functions.

Knows nothing of files, nor of what is asked of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron.data.preprocessing.formatted import SENTINELS

# Where records of known origin keep a property; the first that is there counts. The second names are The Stack's.
NAMES: dict[str, tuple[str, ...]] = {
    "path": ("path", "max_stars_repo_path", "file_path", "filename"),
    "repo": ("repo", "max_stars_repo_name", "repo_name", "repository"),
    "language": ("language", "lang"),
    "license": ("license", "max_stars_repo_licenses", "licenses", "detected_licenses"),
    "stars": ("stars", "max_stars_count", "star_events_count"),
    "date": ("date", "max_stars_repo_stars_event_max_datetime", "revision_date", "visit_date"),
}


@dataclass(frozen=True)
class Document:
    """One record: its text, an id that no other has, and the keys beside them as they were read."""

    id: str
    text: str
    metadata: Mapping[str, Any]

    def find(self, name: str) -> Any:
        """Give a property under any of its known names, beside the text or in a nested `metadata`; None if absent."""
        nested = self.metadata.get("metadata")
        for key in NAMES.get(name, (name,)):
            value = self.metadata.get(key)
            if value is None and isinstance(nested, Mapping):
                value = nested.get(key)
            if value is not None:
                return value
        return None

    def word(self, name: str) -> str:
        """Give a property that is text, "" where it is absent or something else."""
        value = self.find(name)
        return value if isinstance(value, str) else ""

    def extension(self) -> str:
        """Give what follows the last dot of the file's name, in lower case; "" without one."""
        name = self.word("path").rpartition("/")[2]
        stem, dot, extension = name.rpartition(".")
        if dot and (stem or extension):
            return extension.lower()
        extension = self.find("ext")
        return extension.lower() if isinstance(extension, str) else ""

    def with_metadata(self, **values: Any) -> Document:
        """Give the same text with other properties."""
        return Document(self.id, self.text, {**self.metadata, **values})

    def with_text(self, text: str) -> Document:
        """Give the same properties with another text, but for where sentinels stood in the old one."""
        metadata = {key: value for key, value in self.metadata.items() if key != SENTINELS}
        return Document(self.id, text, metadata)


@dataclass(frozen=True)
class Keep:
    """The document goes on, its text untouched; properties may have been added."""

    document: Document


@dataclass(frozen=True)
class Drop:
    """The document ends here: by which rule, the value that decided, and what else there is to say."""

    rule: str
    value: float | None = None
    detail: str = ""
    language: str = ""  # where the stage found one that the document does not state yet


@dataclass(frozen=True)
class Changed:
    """The document goes on with another text: by which rule, and how much of it (matches, characters)."""

    document: Document
    rule: str
    value: float | None = None
    detail: str = ""


READ = "read"  # the stage that every run begins with, see shard_pass.py
Verdict = Keep | Drop | Changed


@dataclass(frozen=True)
class Stage:
    """A step of curation over single documents: a pure function, and the settings that its answers depend on."""

    name: str
    apply: Callable[[Document], Verdict]
    settings: Mapping[str, Any]
    # The same for many at once, where that is faster: a model's batches. Their order and number change nothing.
    apply_to_all: Callable[[Sequence[Document]], Sequence[Verdict]] | None = None


class Entry(NamedTuple):
    """One line of the ledger: what one stage decided about one document."""

    id: str
    language: str
    num_bytes: int
    stage: str
    verdict: str  # kept, dropped or changed
    rule: str = ""
    value: float | None = None
    detail: str = ""


def apply_stages(
    documents: Sequence[Document], stages: Iterable[Stage], note: Callable[[Entry], None]
) -> list[Document | None]:
    """Send documents through stages; give what is left of each, None if one drops it.

    Every decision is noted, in the order of the documents. One that passes all stages gives one entry, of the last
    stage, after those of its changes.
    """
    left: list[Document | None] = list(documents)
    entries: list[list[Entry]] = [[] for _ in documents]
    last = READ
    for stage in stages:
        chosen = [(number, one) for number, one in enumerate(left) if one is not None]
        if stage.apply_to_all is not None:
            verdicts = stage.apply_to_all([document for _, document in chosen])
        else:
            verdicts = [stage.apply(document) for _, document in chosen]
        for (number, document), verdict in zip(chosen, verdicts, strict=True):
            if isinstance(verdict, Drop):
                left[number] = None
                entries[number].append(_entry(document, stage.name, "dropped", verdict))
                continue
            left[number] = verdict.document
            if isinstance(verdict, Changed):
                entries[number].append(_entry(verdict.document, stage.name, "changed", verdict))
        last = last if stage.name == READ else stage.name
    for document_left, of_document in zip(left, entries, strict=True):
        if document_left is not None:
            of_document.append(_entry(document_left, last, "kept", None))
        for entry in of_document:
            note(entry)
    return left


def _entry(document: Document, stage: str, word: str, verdict: Drop | Changed | None) -> Entry:
    what = (verdict.rule, verdict.value, verdict.detail) if verdict else ("", None, "")
    language = document.word("language")
    if isinstance(verdict, Drop) and verdict.language:
        language = verdict.language
    return Entry(document.id, language, num_bytes(document.text), stage, word, *what)


def num_bytes(text: str) -> int:
    """Count the bytes of a text as UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
