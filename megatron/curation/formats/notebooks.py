"""Jupyter notebooks as scripts, and as text, code and output in turn (StarCoder §3, Jupyter).

A script has the prose as comments; magics and shell lines too, so that the rest is code of its language. Knows nothing
of what a notebook computes.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from megatron.curation.formats.sentinels import Sentinel
from megatron.curation.run.document import Drop

_SLASHES = (
    "c c++ cpp java javascript typescript scala go rust kotlin swift csharp c# f# fsharp groovy"
)
SLASHES = frozenset(_SLASHES.split())
OTHER_SIGNS = {
    "matlab": "% ",
    "octave": "% ",
    "haskell": "-- ",
    "sql": "-- ",
    "clojure": "; ",
    "scheme": "; ",
}
MAGIC = re.compile(r"\s*(?:%|!|\?|\w[\w.]*\?{1,2}\s*$)")
TAG = re.compile(r"</?[A-Za-z][^<>]*>")
COMMENT_OR_TAG = re.compile(rf"<!--.*?-->|{TAG.pattern}", re.S)


def _cells(text: str) -> tuple[list[dict[str, Any]], str] | Drop:
    """Read a notebook of format 3 or 4: its cells, and its language in lower case."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Drop("notebook-unreadable", detail=str(error)[:200])
    if not isinstance(content, dict):
        return Drop("notebook-unreadable", detail="no object")
    cells = content.get("cells")
    sheets = content.get("worksheets")
    if cells is None and isinstance(sheets, list):
        listed = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
        cells = [cell for group in listed if isinstance(group, list) for cell in group]
    if not isinstance(cells, list) or not cells:
        return Drop("notebook-empty")
    about = content.get("metadata")
    about = about if isinstance(about, dict) else {}
    found = [
        _at(about, "language_info", "name"),
        _at(about, "kernelspec", "language"),
        about.get("language"),
    ]
    language = next((word.lower() for word in found if isinstance(word, str) and word), "")
    if not language and "py" in str(_at(about, "kernelspec", "name") or "python").lower():
        language = "python"
    return [cell for cell in cells if isinstance(cell, dict)], language


def _at(content: dict[str, Any], *keys: str) -> Any:
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return "".join(map(str, source)) if isinstance(source, list) else str(source or "")


def script_text(text: str) -> str | Drop:
    """Give a notebook as a script: cells in order, a blank line between, what is no code as comments."""
    read = _cells(text)
    if isinstance(read, Drop):
        return read
    cells, language = read
    sign = "// " if language in SLASHES else OTHER_SIGNS.get(language, "# ")
    parts = []
    for cell in cells:
        lines = _source(cell).strip("\n").split("\n")
        if not any(line.strip() for line in lines):
            continue
        if cell.get("cell_type") != "code" or lines[0].startswith("%%"):
            lines = [(sign + line).rstrip() for line in lines]
        else:
            lines = list(_without_magics(lines, sign, language))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n" if parts else Drop("notebook-empty")


def _without_magics(lines: list[str], sign: str, language: str) -> Iterator[str]:
    """Make magics comments; inside of brackets and strings that go over lines, `%` is an operator."""
    depth, in_string = 0, False
    for line in lines:
        is_inside = depth > 0 or in_string
        is_magic = language in ("", "python") and not is_inside and MAGIC.match(line)
        yield sign + line if is_magic else line
        if is_magic:
            continue
        in_string ^= (line.count('"""') + line.count("'''")) % 2 == 1
        depth = max(depth + sum(map(line.count, "([{")) - sum(map(line.count, ")]}")), 0)


def structured_text(text: str, output_characters: int) -> list[str] | Drop:
    """Give a notebook as sentinels and text: prose, code and output in turn, for Python; code before the first text is left out."""
    read = _cells(text)
    if isinstance(read, Drop):
        return read
    cells, language = read
    if "py" not in language:
        return Drop("notebook-language", language=language)
    grouped = itertools.groupby(cells, key=lambda cell: cell.get("cell_type") == "code")
    groups = [(is_code, list(group)) for is_code, group in grouped]
    if groups[0][0]:
        groups = groups[1:]
    parts: list[str] = []
    for (_, prose), (_, code) in zip(groups[::2], groups[1::2], strict=False):
        shown = " ".join(filter(None, (_prose(_source(cell)) for cell in prose)))
        source = "\n".join(filter(None, (_source(cell).strip("\n") for cell in code)))
        if not shown or not source.strip():
            continue
        output = _output(code[-1], output_characters)
        parts += [Sentinel("<jupyter_text>"), shown, Sentinel("<jupyter_code>"), source]
        parts += [Sentinel("<jupyter_output>"), output or Sentinel("<empty_output>")]
    return [Sentinel("<jupyter_start>"), *parts] if parts else Drop("notebook-empty")


def _prose(markdown: str) -> str:
    """Give the words of a text cell on one line, without tags and `#`."""
    # Behind the last --> no comment ends: its end would be looked for from each <!-- on.
    closed, arrow, others = markdown.rpartition("-->")
    shown = COMMENT_OR_TAG.sub(" ", closed + arrow) + TAG.sub(" ", others)
    return " ".join(html.unescape(shown).replace("#", " ").split())


def _output(cell: dict[str, Any], most: int) -> str:
    """Give what a cell printed or showed as text, cut at a number of characters."""
    outputs = cell.get("outputs")
    shown = []
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            continue
        text = output.get("text") or _at(output, "data", "text/plain")
        if text:
            shown.append("".join(map(str, text)) if isinstance(text, list) else str(text))
    whole = "\n".join(part.strip("\n") for part in shown).strip()
    return whole if len(whole) <= most else whole[:most] + "[...]"
