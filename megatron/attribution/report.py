"""Answers as lines for people: the text with what was found marked in it, then a list.

Knows nothing of how answers are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.attribution.index_file import Index

MARKS = ("\x1b[30;43m", "\x1b[30;46m")  # neighbours differ
END = "\x1b[0m"
SHOWN_STEPS = 8


def membership_lines(text: bytes, answer: dict[str, Any], *, colored: bool) -> Iterator[str]:
    """Give the answer of a membership index."""
    spans = [span for span in answer["spans"] if not span["withheld"]]
    if colored:
        yield from marked(text, [(span["start"], span["stop"]) for span in spans])
    for span in answer["spans"]:
        where = ", ".join(Path(prefix).name for prefix in span["datasets"])
        note = (
            " (only of documents that are opted out, or of others too)" if span["withheld"] else ""
        )
        yield f"{_place(text, span)}  {where}{note}"
    yield (
        f"{answer['covered_bytes']:,} of {answer['bytes']:,} bytes stand in the data; of a text that is nowhere, "
        f"{answer['expected_false_spans']:.1g} spans would be found"
    )


def trace_lines(text: bytes, answer: dict[str, Any], *, colored: bool) -> Iterator[str]:
    """Give the answer of exact traces."""
    if colored:
        yield from marked(text, [(span["start"], span["stop"]) for span in answer["spans"]])
    for span in answer["spans"]:
        yield f"{_place(text, span)}  {span['tokens']} tokens, {span['count']:,} times"
    for number, document in enumerate(answer["documents"], 1):
        yield f"{number:>3}. {document['covered_bytes']:,} bytes in {named(document)}"
        for part in document["parts"]:
            first, last = part["lines"]
            yield f"     lines {first}-{last}: {_place(text, part)}"
    yield f"{answer['covered_bytes']:,} of {answer['bytes']:,} bytes stand in the data"


def similar_lines(text: bytes, answer: dict[str, Any], *, colored: bool) -> Iterator[str]:
    """Give the documents that are like the text."""
    for number, hit in enumerate(answer["similar"], 1):
        first, last = hit["lines"]
        what = f"{hit['share']:>4.0%} of its lines at" if hit["share"] else "its words alone, as at"
        yield f"{number:>3}. {what} {first}-{last} of {named(hit)}"
    if not answer["similar"]:
        yield "no document holds a word of this text"


def query_lines(text: bytes, answer: dict[str, Any], *, colored: bool) -> Iterator[str]:
    """Give the answers of all indexes, and what the text owes."""
    if "spans" in answer:
        yield from trace_lines(text, answer, colored=colored)
    if "membership" in answer:
        covered = answer["membership"]["covered_bytes"]
        yield f"{covered:,} bytes do by their fingerprints, white space apart"
    if answer.get("similar"):
        yield "documents that are like it:"
        yield from similar_lines(text, answer, colored=colored)
    if answer["licenses"]:
        counts = (f"{one['license']} ({one['documents']})" for one in answer["licenses"])
        yield f"licences of these documents: {', '.join(counts)}"
    if answer["notice"]:
        yield ""
        yield answer["notice"].rstrip("\n")


def named(document: dict[str, Any]) -> str:
    """Name a document by its provenance, and by its number."""
    fields = [
        f"{key}={value}"
        for key, value in (document["provenance"] or {}).items()
        if value is not None
    ]
    number = f"{Path(document['dataset']).name} document {document['document']}"
    name = f"{'  '.join(fields)}  ({number})" if fields else f"{number}, no provenance"
    return name + _steps(document)


def _steps(document: dict[str, Any]) -> str:
    """Name the steps that read a document, where they were asked for."""
    if "steps" not in document:
        return ""
    steps = document["steps"]
    shown = ", ".join(map(str, steps[:SHOWN_STEPS])) + ", …" * (len(steps) > SHOWN_STEPS)
    return f", read at step {shown}" if steps else ", not read by a step"


def marked(text: bytes, spans: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Give the text with spans, which may overlap, in colour."""
    pieces, place = [], 0
    for number, (start, stop) in enumerate(spans):
        start = max(start, place)
        if stop > start:
            inside = printable(text[start:stop]).replace("\n", f"{END}\n{MARKS[number % 2]}")
            pieces += [printable(text[place:start]), MARKS[number % 2], inside, END]
            place = stop
    yield "".join([*pieces, printable(text[place:])]).rstrip("\n")


def printable(text: bytes) -> str:
    """Give text that cannot steer a terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in text.decode("utf-8", "replace")
    )


def index_line(path: Path, index: Index) -> str:
    """Describe an index in a line."""
    shown = {
        key: value for key, value in index.facts.items() if isinstance(value, int | float | str)
    }
    hidden = ("kind", "sha256", "bytes", "spelling", "normalisation")
    facts = ", ".join(
        f"{key} {value:,}"
        if isinstance(value, int)
        else f"{key} {value:.4g}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in shown.items()
        if key not in hidden
    )
    return f"{path}: {index.num_bytes / 1e6:,.1f} MB, up to date; {facts}"


def _place(text: bytes, span: dict[str, Any]) -> str:
    """Say where a span is in the text, and how it begins."""
    begin = printable(text[span["start"] : span["stop"]][:60]).split("\n")
    shown = next((line.strip() for line in begin if line.strip()), "")
    return f"bytes {span['start']}-{span['stop']}  {shown[:48]!r}"
