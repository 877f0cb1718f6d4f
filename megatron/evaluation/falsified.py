"""Falsified tests: the same program with one expected value changed, which a right candidate must fail.

MultiPL-E's tests are part of the program, and a program that ends early with exit code 0, or makes its own assertions
do nothing, looks as if it passed. It looks so with falsified tests, too. Which check is falsified is drawn anew each
time, and nothing marks it: whoever wants to fail that one alone must know the right value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

LITERAL = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*")|(?P<character>'(?:[^'\\]|\\.)*')"""
    r"""|(?P<truth>\b(?:true|false|True|False|TRUE|FALSE)\b|\#[tf]\b)"""
    r"""|(?P<number>(?<![\w.\#$])\d+(?:\.\d+)?)"""
)
OPPOSITE = {
    "true": "false", "false": "true", "True": "False", "False": "True", "TRUE": "FALSE", "FALSE": "TRUE",
    "#t": "#f", "#f": "#t",
}  # fmt: skip
OPEN, CLOSED = "([{", ")]}"

Span = tuple[int, int]


def falsified(tests: str, language: str) -> list[str]:
    """Give the tests with one expected value changed, for each check where that can be done, in their order."""
    find = EXPECTED.get(language)
    if find is None:
        return []
    variants = []
    start = 0
    for line in tests.splitlines(keepends=True):
        span = find(line)
        changed = _change(line, span) if span is not None else None
        if changed is not None:
            variants.append(f"{tests[:start]}{changed}{tests[start + len(line) :]}")
        start += len(line)
    return variants


def _change(line: str, span: Span) -> str | None:
    """Change the last literal of a part of a line, or give None where it has none."""
    literals = list(LITERAL.finditer(line, *span))
    if not literals:
        return None
    found = literals[-1]
    text = found.group()
    if found["truth"]:
        new = OPPOSITE[text]
    elif found["number"]:
        whole, point, rest = text.partition(".")
        new = f"{int(whole) + 1}{point}{rest}"
    elif found["character"] and len(text) == 3:  # in some languages one character, no more
        new = "'b'" if text == "'a'" else "'a'"
    else:
        new = f"{text[:-1]}x{text[-1]}"
    return line[: found.start()] + new + line[found.end() :]


def _arguments(line: str, start: int) -> list[Span]:
    """Give the parts of a bracket whose inside begins at start; none where it does not end in the line."""
    parts: list[Span] = []
    depth, first, place = 0, start, start
    while place < len(line):
        letter = line[place]
        literal = LITERAL.match(line, place) if letter in "\"'" else None
        if literal is not None:
            place = literal.end()
            continue
        if letter in OPEN:
            depth += 1
        elif letter in CLOSED:
            if depth == 0:
                return [*parts, (first, place)]
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append((first, place))
            first = place + 1
        place += 1
    return []


def _argument(call: str, number: int) -> Callable[[str], Span | None]:
    """Give what finds an argument of a call, such as `assert.deepEqual(`."""

    def find(line: str) -> Span | None:
        place = line.find(call)
        if place < 0:
            return None
        parts = _arguments(line, place + len(call))
        return parts[number] if len(parts) > 1 else None

    return find


def _after(expression: str) -> Callable[[str], Span | None]:
    """Give what finds the group `expected` of an expression."""
    compiled = re.compile(expression)

    def find(line: str) -> Span | None:
        found = compiled.search(line)
        return found.span("expected") if found else None

    return find


# A check's last comparison; in its operands there may be more.
_COMPARED = r"\bassert\b.*(?:==|\.equals\(|\.Equals\()(?P<expected>.*)$"
EXPECTED: Mapping[str, Callable[[str], Span | None]] = {
    "cpp": _after(_COMPARED),
    "cs": _after(_COMPARED.replace("assert", "Assert")),
    "d": _after(_COMPARED),
    "go": _after(r"\bexpected:(?P<expected>.*)\},?\s*$"),
    "java": _after(_COMPARED),
    "jl": _after(r"@test\b.*==(?P<expected>.*)$"),
    "js": _argument("assert.deepEqual(", -1),
    "lua": _argument("lu.assertEquals(", -1),
    "php": _after(r"\bif \(.*!==(?P<expected>.*)\)\s*\{"),
    "pl": _argument("eq_deeply(", -1),
    "r": _argument("identical(", -1),
    "rb": _argument("assert_equal(", 0),
    "rkt": _after(r"\(check-within .*\) (?P<expected>.*) [\d.]+\)\s*$"),
    "rs": _argument("assert_eq!(", -1),
    "scala": _after(_COMPARED),
    "sh": _after(r"\[\[ .* = (?P<expected>.*) \]\]"),
    "swift": _after(_COMPARED),
    "ts": _argument("assert.deepEqual(", -1),
}
