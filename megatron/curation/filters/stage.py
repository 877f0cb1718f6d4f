"""The rules that drop a file for its shape, each a short function that gives the value it decided by.

StarCoder §3.2 unless a rule says otherwise; thresholds by extension are those of its manual inspection. A rule gives
None to keep and a number to drop. Knows nothing of licences, duplicates or personal data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from megatron.curation.filters.text_measure import (
    alphabetic_fraction,
    alphanumeric_fraction,
    encoded_runs,
    line_lengths,
    visible_length,
)
from megatron.curation.run.document import Document, Drop, Keep, Stage, Verdict
from megatron.curation.select.languages import LANGUAGE_OF_EXTENSION
from megatron.option_field import check_bounds, option

# StarCoder §3.2: extensions whose files have no limit on lines, since prose and tables have long ones.
_NO_LINE_LIMIT = """
ado asm bbx bib bsv cbx cmake do dtx frm ins json lbx ma markdown matlab md mkd mkdn mkii mkiv mkvi nb r rmd ron rst sql
sty tex
"""
_ALPHABETIC = "ads aug bas fp ma matlab mpl nb prc scm sld sps sv vhd wl y"
NO_LINE_LIMIT = frozenset(_NO_LINE_LIMIT.split())
LONGEST_LINE_OF = {"fsh": 500}
NO_ALPHANUMERIC_LIMIT = frozenset({"frm", "ma", "nb", "sas"})
ALPHABETIC_OF = dict.fromkeys(_ALPHABETIC.split(), 0.25) | {"json": 0.5, "yaml": 0.5, "yml": 0.5}
XML_HEADER, XML_HEADER_CHARACTERS = "<?xml version=", 100
SIZED = frozenset({"json", "yaml"})
XML_LANGUAGES = frozenset({"xslt"})  # they are XML, and wanted

# StarCoder 2: marks of generated files, looked for in the first lines.
GENERATED = re.compile(
    r"auto-?generated|(?:file|code|this) (?:was |is )?generated|generated (?:automatically|by)|automatically generated|"
    r"@generated|do not (?:edit|modify)",
    re.I,
)
STRING = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")


@dataclass(frozen=True)
class FilterConfig:
    """Thresholds of the filters; the defaults are the paper's, and a limit of 0 turns its rule off."""

    max_line: int = option(1000, "longest line, characters", minimum=0)
    max_mean_line: float = option(100.0, "mean length of lines, characters", minimum=0)
    min_alphanumeric: float = option(0.25, "part of alphanumeric characters", minimum=0, maximum=1)
    ignore_extensions: bool = option(
        False, "the same thresholds for every extension, without the paper's exceptions"
    )
    keep_xml: bool = option(False, "keep files that begin as XML")
    min_visible: float = option(0.2, "HTML: part that is visible text", minimum=0, maximum=1)
    min_visible_characters: int = option(100, "HTML: visible characters", minimum=0)
    min_size: int = option(
        50, "JSON and YAML: characters (the paper says 50, its code 100)", minimum=0
    )
    max_size: int = option(5000, "JSON and YAML: characters", minimum=0)
    drop_generated: bool = option(False, "drop what says it is generated in its first lines")
    generated_lines: int = option(5, "lines in which such a mark counts", minimum=1)
    max_encoded: float = option(
        0.0, "part of base64, hexadecimal or \\u data, as 0.5", minimum=0, maximum=1
    )
    max_encoded_run: int = option(0, "longest run of such data, characters, as 1024", minimum=0)
    max_string: int = option(0, "longest string literal, characters, as 10000", minimum=0)
    max_lines: int = option(0, "lines, as 100000", minimum=0)
    min_stars: int = option(0, "stars of the repository (SantaCoder asked for 6)", minimum=0)

    def check(self) -> None:
        """Raise ConfigError for a threshold out of its range."""
        check_bounds(self)


@dataclass(frozen=True)
class Measured:
    """A document with what several rules ask of it, measured once."""

    document: Document
    config: FilterConfig
    extension: str = field(default="")

    @cached_property
    def text(self) -> str:
        return self.document.text

    @cached_property
    def language(self) -> str:
        stated = self.document.word("language").lower()
        return stated or LANGUAGE_OF_EXTENSION.get(self.extension, "")

    @cached_property
    def lines(self) -> tuple[int, float]:
        return line_lengths(self.document.text)

    @cached_property
    def encoded(self) -> tuple[int, int]:
        return encoded_runs(self.document.text)

    @cached_property
    def visible(self) -> int:
        return visible_length(self.document.text)

    @property
    def has_line_limit(self) -> bool:
        return self.config.ignore_extensions or self.extension not in NO_LINE_LIMIT


Rule = Callable[[Measured], float | None]


def long_line(file: Measured) -> float | None:
    """StarCoder §3.2: the longest line has more than 1000 characters."""
    limit = file.config.max_line
    if not file.has_line_limit:
        return None
    if not file.config.ignore_extensions:
        limit = min(limit, LONGEST_LINE_OF.get(file.extension, limit))
    return file.lines[0] if file.lines[0] > limit else None


def mean_line(file: Measured) -> float | None:
    """StarCoder §3.2: lines have more than 100 characters on average; only where lines have a limit."""
    is_long = file.has_line_limit and file.lines[1] > file.config.max_mean_line
    return file.lines[1] if is_long else None


def alphanumeric(file: Measured) -> float | None:
    """StarCoder §3.2: fewer than 25 % of the characters are alphanumeric."""
    if not file.config.ignore_extensions and file.extension in NO_ALPHANUMERIC_LIMIT:
        return None
    fraction = alphanumeric_fraction(file.text)
    return fraction if fraction < file.config.min_alphanumeric else None


def alphabetic(file: Measured) -> float | None:
    """StarCoder §3.2: too few letters, for the extensions where tables of numbers are common."""
    limit = ALPHABETIC_OF.get(file.extension)
    if limit is None:
        return None
    fraction = alphabetic_fraction(file.text)
    return fraction if fraction < limit else None


def xml(file: Measured) -> float | None:
    """StarCoder §3.2: an XML header within the first 100 characters, in any language but XSLT."""
    if file.language in XML_LANGUAGES:
        return None
    place = file.text[:XML_HEADER_CHARACTERS].find(XML_HEADER)
    return place if place >= 0 else None


def html_text(file: Measured) -> float | None:
    """StarCoder §3.2: an HTML page shows 20 % of its characters or less; the value is that part."""
    if file.language != "html":
        return None
    fraction = file.visible / max(len(file.text), 1)
    return fraction if fraction <= file.config.min_visible else None


def html_length(file: Measured) -> float | None:
    """StarCoder §3.2: an HTML page shows 100 characters or fewer."""
    is_short = file.language == "html" and file.visible <= file.config.min_visible_characters
    return file.visible if is_short else None


def data_size(file: Measured) -> float | None:
    """StarCoder §3.2: JSON and YAML of fewer than 50 or more than 5000 characters, which is mostly data."""
    if file.language not in SIZED:
        return None
    size = len(file.text)
    is_long = bool(file.config.max_size) and size > file.config.max_size
    return size if size < file.config.min_size or is_long else None


def generated(file: Measured) -> float | None:
    """StarCoder 2: a mark of generated code in the first 5 lines; the value is the line, from 1."""
    for number, line in enumerate(file.text[:4000].split("\n")[: file.config.generated_lines], 1):
        if GENERATED.search(line):
            return number
    return None


def encoded_part(file: Measured) -> float | None:
    """StarCoder 2: more than half of the file is base64, hexadecimal or \\u data."""
    part = file.encoded[0] / max(len(file.text), 1)
    return part if part > file.config.max_encoded else None


def encoded_run(file: Measured) -> float | None:
    """StarCoder 2: a run of such data is longer than 1024 characters."""
    longest = file.encoded[1]
    return longest if longest > file.config.max_encoded_run else None


def long_string(file: Measured) -> float | None:
    """A string literal that is longer than any a person writes: data in a program's clothes."""
    limit = file.config.max_string
    if len(file.text) <= limit:
        return None
    longest = max((len(match[0]) for match in STRING.finditer(file.text)), default=0)
    return longest if longest > limit else None


def many_lines(file: Measured) -> float | None:
    """StarCoder 2: more than 100,000 lines."""
    count = file.text.count("\n") + 1
    return count if count > file.config.max_lines else None


def few_stars(file: Measured) -> float | None:
    """SantaCoder's experiment: a repository of few stars."""
    stars = file.document.find("stars")
    stars = stars if isinstance(stars, int | float) else 0
    return stars if stars < file.config.min_stars else None


def rules_of(config: FilterConfig) -> list[tuple[str, Rule]]:
    """Give the rules that are on, in the order they are asked: cheap ones first. The ledger names the first that drops."""
    given: tuple[tuple[str, Rule, object], ...] = (
        ("stars", few_stars, config.min_stars),
        ("xml", xml, not config.keep_xml),
        ("data-size", data_size, True),
        ("lines", many_lines, config.max_lines),
        ("long-line", long_line, config.max_line),
        ("mean-line", mean_line, config.max_mean_line),
        ("alphanumeric", alphanumeric, config.min_alphanumeric),
        ("alphabetic", alphabetic, not config.ignore_extensions),
        ("html-length", html_length, config.min_visible_characters),
        ("html-text", html_text, config.min_visible),
        ("generated", generated, config.drop_generated),
        ("encoded-run", encoded_run, config.max_encoded_run),
        ("encoded", encoded_part, config.max_encoded),
        ("long-string", long_string, config.max_string),
    )
    return [(name, rule) for name, rule, is_on in given if is_on]


def filter_stage(config: FilterConfig) -> Stage:
    """Give the stage that asks every rule."""
    config.check()
    rules = rules_of(config)

    def apply(document: Document) -> Verdict:
        file = Measured(document, config, document.extension())
        for name, rule in rules:
            value = rule(file)
            if value is not None:
                return Drop(name, float(value))
        return Keep(document)

    return Stage("filter", apply, vars(config))
