#!/usr/bin/env python3
"""Write csrc/unicode_classes.h: which characters the `tokenizers` package takes as letters, numbers and spaces.

Its regular expressions and its digit splitter follow two libraries of different Unicode versions, neither of them
Python's, so their tables are read off the package itself: every character is put through its pre-tokenizers.
tests/tokenizer/test_byte_pair.py shows that the header still agrees with the installed package.

    python csrc/make_unicode_classes.py > csrc/unicode_classes.h
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

HEADER = """\
// Classes of characters, as ranges of code points (first, last): written by csrc/make_unicode_classes.py.

#pragma once

#include <cstdint>

namespace unicode {

struct Range {
    uint32_t first, last;
};
"""
COMMENTS = {
    "kLetters": r"\p{L} of regular expressions.",
    "kNumbers": r"\p{N} of regular expressions.",
    "kSpaces": r"\s of regular expressions.",
    "kDigits": "What the Digits pre-tokenizer splits off: numbers of a later Unicode version.",
}


def classes() -> dict[str, list[tuple[int, int]]]:
    """Give the ranges of each class."""
    chars = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    text = "".join(chars)

    def matching(pattern: str) -> set[int]:
        splitter = pre_tokenizers.Split(Regex(f"[^{pattern}]+"), "removed")
        spans = [span for _, span in splitter.pre_tokenize_str(text)]
        return {ord(char) for start, stop in spans for char in chars[start:stop]}

    digits = pre_tokenizers.Digits(individual_digits=True)
    alone = [
        chars[start] for _, (start, stop) in digits.pre_tokenize_str(text) if stop - start == 1
    ]
    return {
        "kLetters": _ranges(matching(r"\p{L}")),
        "kNumbers": _ranges(matching(r"\p{N}")),
        "kSpaces": _ranges(matching(r"\s")),
        "kDigits": _ranges({ord(c) for c in alone if len(digits.pre_tokenize_str("a" + c)) == 2}),
    }


def _ranges(codes: set[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return ranges


def main() -> None:
    print(HEADER)
    for name, ranges in classes().items():
        print(f"// {COMMENTS[name]}\nconstexpr Range {name}[] = {{")
        entries = [f"{{0x{first:x}, 0x{last:x}}}," for first, last in ranges]
        line = "   "
        for entry in entries:
            if len(line) + len(entry) >= 100:
                print(line)
                line = "   "
            line += " " + entry
        print(f"{line}\n}};\n")
    print("}  // namespace unicode")


if __name__ == "__main__":
    main()
