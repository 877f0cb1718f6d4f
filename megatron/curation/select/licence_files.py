"""Where a repository says its licence: package metadata, licence files, and DEP-5 `debian/copyright`.

Knows nothing of which licences are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from megatron.curation.select.licences import UNKNOWN, normalise, of_text

UNPACKED_ROOT = re.compile(r"usr/[^/]+/")
MAX_BYTES = 1 << 20  # of a metadata file; more is no metadata
LICENCE_FILE = re.compile(r"(?:un)?licen[sc]e|copying|copyright", re.I)
_CLASSIFIER = re.compile(r"License\s*::\s*(?:OSI Approved\s*::\s*)?([^\"'\n:]+)")
_TOML_SECTION = re.compile(r"^\s*\[([^\[\]]+)\]\s*(?:#.*)?$", re.M)
_TOML_LICENCE = re.compile(
    r"^\s*license(?:\.text|-expression)?\s*=\s*(?:\{\s*text\s*=\s*)?[\"']([^\"'\n]+)[\"']", re.M
)
_NO_NAME = re.compile(r"file:|copyright|licen[sc]e agreement|[^A-Za-z0-9(]", re.I)
_GEMSPEC = re.compile(r"\.licenses?\s*=\s*\[?\s*[\"']([^\"']+)[\"']")
_SETUP_CALL = re.compile(r"\blicense\s*=\s*[\"']([^\"'\n]+)[\"']")


def _package_json(text: str) -> str | None:
    content = json.loads(text)
    if not isinstance(content, dict):
        return None
    given = content.get("license") or content.get("licenses")
    names = [_json_licence(item) for item in (given if isinstance(given, list) else [given])]
    known = [name for name in names if name]
    return " OR ".join(known) if known else None


def _json_licence(value: Any) -> str | None:
    value = value.get("type") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _toml_sections(text: str) -> dict[str, str]:
    """Give the lines of each table of a TOML file; Python 3.10 has no reader, and one key is wanted."""
    pieces = _TOML_SECTION.split(text)
    return {name.strip(): body for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def _toml(*names: str) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        sections = _toml_sections(text)
        for name in names:
            match = _TOML_LICENCE.search(sections.get(name, ""))
            if match:
                return match[1]
        return _classifier(text)

    return read


def _classifier(text: str) -> str | None:
    names = [match[1].strip() for match in _CLASSIFIER.finditer(text)]
    names = [name for name in names if name != "OSI Approved"]
    return " OR ".join(dict.fromkeys(map(normalise, names))) or None


def _headers(text: str) -> str | None:
    """Read Python's PKG-INFO and METADATA, and setup.cfg, which spell alike."""
    for key in ("License-Expression", "license_expression", "License", "license"):
        match = re.search(rf"^{key}[ \t]*[:=][ \t]*(\S.*)$", text, re.M)
        if match is None or match[1].strip().lower() in UNKNOWN or _NO_NAME.match(match[1]):
            continue
        return match[1].strip() if len(match[1]) < 100 else of_text(match[1])
    return _classifier(text)


def _first(expression: re.Pattern[str]) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        match = expression.search(text)
        return match[1] if match else None

    return read


def _setup_py(text: str) -> str | None:
    return _first(_SETUP_CALL)(text) or _classifier(text)


# In the order of trust: what says an expression before what is recognised by its text.
READERS: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    ("package.json", _package_json),
    ("Cargo.toml", _toml("package", "workspace.package")),
    ("pyproject.toml", _toml("project", "tool.poetry")),
    ("METADATA", _headers),
    ("PKG-INFO", _headers),
    ("setup.cfg", _headers),
    ("setup.py", _setup_py),
    ("composer.json", _package_json),
    ("DESCRIPTION", _headers),
)
READ_NAMES = {name for name, _ in READERS}


def is_metadata(name: str) -> bool:
    """Say whether a file of this name may state the licence of its folder."""
    return name in READ_NAMES or name.endswith(".gemspec") or bool(LICENCE_FILE.match(name))


def licence_of(files: Mapping[str, str]) -> tuple[str, str] | None:
    """Give the licence that the metadata files of one folder state, by name and content, and the file that says so.

    A file that cannot be parsed states nothing.
    """
    for name, read in READERS:
        if name in files and (found := _try(read, files[name])):
            return found, name
    for name in sorted(files):
        if name.endswith(".gemspec") and (found := _first(_GEMSPEC)(files[name])):
            return found, name
    texts = [(name, of_text(files[name])) for name in sorted(files) if LICENCE_FILE.match(name)]
    known = [(name, found) for name, found in texts if found]
    if not known:
        return None
    # LICENSE-MIT beside LICENSE-APACHE: either may be chosen. Others are of parts of the whole, which all apply.
    is_choice = all(re.search(rf"[-_.]{re.escape(found[:3])}", name, re.I) for name, found in known)
    word = " OR " if is_choice else " AND "
    return word.join(dict.fromkeys(found for _, found in known)), known[0][0]


def _try(read: Callable[[str], str | None], text: str) -> str | None:
    try:
        found = read(text)
    except ValueError:
        return None
    return found if found and found.strip().lower() not in UNKNOWN else None


@dataclass(frozen=True)
class Dep5:
    """A machine-readable debian/copyright: patterns of paths and the licence of each, the last match counts."""

    stanzas: tuple[tuple[tuple[str, ...], str], ...]
    # Of an unpacked package, whose files lie somewhere below /usr/share/… and not as in their source tree.
    is_unpacked: bool = False

    def licence_of(self, path: str) -> str | None:
        """Give the licence of a path relative to the source tree; None if no stanza matches."""
        root = UNPACKED_ROOT.match(path) if self.is_unpacked else None
        for patterns, licence in reversed(self.stanzas):
            for pattern in map(_pattern, patterns):
                # Wherever the source tree may begin in the package.
                if pattern.fullmatch(path) or (root and pattern.search(path, root.end() - 1)):
                    return licence
        return None


@lru_cache(maxsize=4096)
def _pattern(glob: str) -> re.Pattern[str]:
    """Translate DEP-5's patterns: `*` and `?` match slashes too, a backslash quotes."""
    pieces = re.findall(r"\\[*?\\]|.", glob.removeprefix("./"), re.S)
    translated = {"*": ".*", "?": "."}
    spelled = "".join(translated.get(p) or re.escape(p[-1]) for p in pieces)
    return re.compile(rf"(?:(?<=/)|\A){spelled}\Z", re.S)


def parse_dep5(text: str, *, is_unpacked: bool = False) -> Dep5 | None:
    """Read a debian/copyright; None if it is not machine-readable."""
    if not re.match(r"\s*Format(?:-Specification)?:", text):
        return None
    stanzas = []
    for block in re.split(r"\n[ \t]*\n", text):
        fields = _fields(block)
        if "files" in fields and fields.get("license", "").strip():
            licence = fields["license"].strip().split("\n")[0].strip()
            stanzas.append((tuple(fields["files"].split()), _expression(licence)))
    return Dep5(tuple(stanzas), is_unpacked)


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in block.split("\n"):
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + "\n" + line.strip()
        elif ":" in line and not line.startswith("#"):
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _expression(licence: str) -> str:
    """Turn DEP-5's short names into SPDX's: `GPL-2+ or Expat, and BSD-3-clause`."""
    words = re.split(r"(\s+(?:and/or|and|or)\s+|\s+with\s+.*|,)", licence, flags=re.I)
    names = [normalise(word) if number % 2 == 0 else word for number, word in enumerate(words)]
    joined = "".join(names).replace("and/or", "OR")
    # In DEP-5 a comma ends a group: "A or B, and C" is (A or B) and C.
    match = re.fullmatch(r"(.*),\s*(and|or)\s+(.*)", joined, re.I)
    joined = f"({match[1]}) {match[2]} {match[3]}" if match else joined
    return re.sub(r"(?<![\w-])(and|or|with)(?![\w-])", lambda word: word[0].upper(), joined)
