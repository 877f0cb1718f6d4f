"""Personal data as spans of a text with a label: read from records, as labels of tokens, and back; and how well they fit.

Knows nothing of models: a classifier of tokens is what gives each token a probability for each label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from megatron.curation.run.document import Document
from megatron.errors import DataError

LABELS = ("NAME", "USERNAME", "EMAIL", "IP_ADDRESS", "KEY", "PASSWORD")  # StarPII's
UNSURE = "AMBIGUOUS"  # a span that is neither: its tokens count for nothing in training
OUTSIDE, UNUSED = 0, -100
MIN_OVERLAP = 0.8  # of both spans, for them to be the same
WORD = re.compile(r"\w+|[^\w\s]")
WITH_SPACES = ("NAME",)  # all others end at white space


class Span(NamedTuple):
    """Characters of a text and what they are."""

    begin: int
    end: int
    label: str


@dataclass(frozen=True)
class Annotated:
    """A text and the personal data that people, or a program, marked in it."""

    id: str
    text: str
    spans: tuple[Span, ...]


def annotated(document: Document) -> Annotated:
    """Read the spans of a record; DataError where there are none to read, or they do not lie in the text.

    They stand under `spans` (start, end, label), or as in BigCode's data sets under `fragments` (position, category) or
    `pii` (start, end, tag), as a list or as JSON.
    """
    values = (document.find(key) for key in ("spans", "fragments", "pii"))
    found: Any = next((value for value in values if value is not None), None)
    try:
        items = orjson.loads(found) if isinstance(found, (str, bytes)) else found
        spans = [_span(item) for item in items]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, StopIteration):
        raise DataError(
            f'record {document.id} has no spans to read; give {{"spans": [{{"start": 0, "end": 4, "label": "NAME"}}]}} '
            "beside its text, [] if there is nothing in it"
        ) from None
    for span in spans:
        if not 0 <= span.begin < span.end <= len(document.text):
            raise DataError(
                f"record {document.id} has a {span.label} from {span.begin} to {span.end}, and {len(document.text)} characters"
            )
    return Annotated(document.id, document.text, tuple(sorted(spans)))


def _span(item: Mapping[str, Any]) -> Span:
    begin, end = item["position"] if "position" in item else (item["start"], item["end"])
    label = next(item[key] for key in ("label", "category", "tag") if key in item)
    return Span(int(begin), int(end), str(label))


def tags_of(labels: Sequence[str]) -> list[str]:
    """Give the classes of a token: outside, and the first or a later one of each label."""
    return ["O", *(f"{place}-{label}" for label in labels for place in "BI")]


def token_tags(
    offsets: npt.NDArray[np.int64], spans: Iterable[Span], labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Give the class of each token. offsets: [tokens, 2], in characters. Labels that are not asked for are outside."""
    tags = np.full(len(offsets), OUTSIDE, np.int64)
    for span in spans:
        touched = np.flatnonzero((offsets[:, 0] < span.end) & (offsets[:, 1] > span.begin))
        if span.label == UNSURE:
            tags[touched] = UNUSED
        elif span.label in labels and len(touched):
            first = 1 + 2 * labels.index(span.label)
            tags[touched] = first + 1
            tags[touched[0]] = first
    return tags


def label_columns(tags: Sequence[str]) -> dict[str, list[int]]:
    """Give the classes of each label of a model, whether it marks first tokens or not."""
    columns: dict[str, list[int]] = {}
    for number, tag in enumerate(tags):
        if tag not in ("O", "0", "LABEL_0"):
            columns.setdefault(re.sub(r"^[BIESLU][-_]", "", tag), []).append(number)
    return columns


def spans_of(
    text: str,
    offsets: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    columns: Mapping[str, Sequence[int]],
    threshold: float,
) -> list[Span]:
    """Give the spans of a text: words of which a label is likely enough, by the mean of their tokens, and neighbours.

    offsets: [tokens, 2], in characters; probabilities: [tokens, classes]. A span stays in its line, and but for names
    ends at white space. So first tokens need not be told from later ones, and no word is cut.
    """
    if not len(offsets) or not columns:
        return []
    names = list(columns)
    by_label = np.stack([probabilities[:, columns[name]].sum(axis=1) for name in names], axis=1)
    likely = np.flatnonzero(by_label.max(axis=1) >= threshold)
    spans: list[Span] = []
    done = -1
    for token in likely:
        begin = int(offsets[token, 0])
        if begin < done:
            continue
        first = text.rfind("\n", 0, begin) + 1
        done = text.find("\n", begin) + 1 or len(text) + 1
        spans += _spans_of_line(text, (first, done), offsets, by_label, names, threshold)
    return spans


def _spans_of_line(
    text: str,
    line: tuple[int, int],
    offsets: npt.NDArray[np.int64],
    by_label: npt.NDArray[np.float32],
    names: Sequence[str],
    threshold: float,
) -> list[Span]:
    first = int(np.searchsorted(offsets[:, 1], line[0], side="right"))
    last = int(np.searchsorted(offsets[:, 0], line[1], side="left"))
    starts, ends = offsets[first:last, 0], offsets[first:last, 1]
    spans: list[Span] = []
    for match in WORD.finditer(text, *line):
        touched = slice(
            int(np.searchsorted(ends, match.start(), side="right")),
            int(np.searchsorted(starts, match.end(), side="left")),
        )
        if touched.start >= touched.stop:
            continue
        means = by_label[first:last][touched].mean(axis=0)
        best = int(means.argmax())
        if means[best] < threshold:
            continue
        label = names[best]
        if spans and spans[-1].label == label:
            between = text[spans[-1].end : match.start()]
            if not between or (label in WITH_SPACES and not between.strip()):
                spans[-1] = spans[-1]._replace(end=match.end())
                continue
        spans.append(Span(*match.span(), label))
    return spans


@dataclass(frozen=True)
class Score:
    """How many were found, rightly, of how many there are."""

    right: int = 0
    found: int = 0
    there: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 0.0

    @property
    def f1(self) -> float:
        """Give the harmonic mean of precision and recall."""
        return 2 * self.right / (self.found + self.there) if self.found + self.there else 0.0

    def to_json(self) -> dict[str, float]:
        """Give counts and measures."""
        counts = {"right": self.right, "found": self.found, "there": self.there}
        return {**counts, "precision": self.precision, "recall": self.recall, "f1": self.f1}


def scores(
    pairs: Iterable[tuple[Sequence[Span], Sequence[Span]]], labels: Sequence[str]
) -> dict[str, Score]:
    """Give the score of each label, and of `all`, over (found, there) of texts; spans match if they overlap by 0.8."""
    right: Counter[str] = Counter()
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for mine, truth in pairs:
        left = [span for span in truth if span.label in labels]
        there.update(span.label for span in left)
        for span in mine:
            if span.label not in labels:
                continue
            found[span.label] += 1
            match = next((other for other in left if _is_same(span, other)), None)
            if match is not None:
                left.remove(match)
                right[span.label] += 1
    each = {label: Score(right[label], found[label], there[label]) for label in labels}
    return {**each, "all": Score(right.total(), found.total(), there.total())}


def _is_same(a: Span, b: Span) -> bool:
    common = min(a.end, b.end) - max(a.begin, b.begin)
    return a.label == b.label and common > MIN_OVERLAP * max(a.end - a.begin, b.end - b.begin)
