"""Licences: SPDX expressions, the names people write for them, their texts, and which may be trained on.

Knows nothing of files; see licence_files.py for where a licence is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

# Permissive licences, as StarCoder §3.1 asks: free use with attribution at most. Names of SPDX.
_PERMISSIVE = """
0BSD AFL-2.1 AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent
BSD-3-Clause BSD-3-Clause-Clear BSD-3-Clause-LBNL BSD-4-Clause BSL-1.0 CC-BY-3.0 CC-BY-4.0 CC0-1.0 CNRI-Python curl
ECL-2.0 FSFAP FSFUL FTL HPND ICU ISC JSON libpng-2.0 Libpng libtiff MIT MIT-0 MIT-advertising MIT-CMU
MIT-Modern-Variant MS-PL MulanPSL-2.0 NCSA NTP OLDAP-2.8 OpenSSL PHP-3.01 PostgreSQL PSF-2.0 Python-2.0 Ruby TCL Unicode-DFS-2016
Unlicense UPL-1.0 Vim W3C WTFPL X11 Xnet ZPL-2.0 ZPL-2.1 Zlib public-domain
"""
PERMISSIVE = tuple(_PERMISSIVE.split())

# What people write for what SPDX calls otherwise, as `_plain` gives it: without case, punctuation and empty words.
_SPELLINGS = {
    "MIT": "expat; mit mit; mit x11; mit expat",
    "Apache-2.0": "apache; apache 2; apache2; apache20; apache 20; asl 20; apache software; apache software 20",
    "BSD-3-Clause": "bsd; new bsd; modified bsd; 3 clause bsd; bsd 3; bsd3; revised bsd; bsd 3 clause new or revised",
    "BSD-2-Clause": "simplified bsd; freebsd; bsd 2; bsd2; 2 clause bsd",
    "ISC": "isc iscl",
    "BSL-1.0": "boost; boost software; boost software 10; boost software 10 bsl 10",
    "PSF-2.0": "psf; psfl; python software foundation; python software foundation 2",
    "Python-2.0": "python",
    "Zlib": "zlib libpng",
    "public-domain": "public domain; pd",
    "Unlicense": "unlicense unlicense",
    "CC0-1.0": "cc0; cc0 10 universal; cc0 10 universal cc0 10 public domain dedication",
    "MPL-2.0": "mozilla public 20 mpl 20; mozilla public 20; mpl 20; mpl2",
    "GPL-2.0-only": "gnu general public v2 gplv2; gplv2",
    "GPL-3.0-only": "gnu general public v3 gplv3; gplv3",
    "GPL-2.0-or-later": "gnu general public gpl; gnu general public v2 or later gplv2+",
    "GPL-3.0-or-later": "gnu general public v3 or later gplv3+",
    "Artistic-2.0": "artistic 2; artistic 20",
    "Ruby": "ruby s",
}
_EMPTY_WORDS = {"the", "license", "licence", "version", "licensed", "under"}
_UNKNOWN = "; none; noassertion; unknown; other; unlicensed; see license in license; proprietary"
UNKNOWN = frozenset(_UNKNOWN.split("; "))
_KNOWN = {name.lower(): name for name in PERMISSIVE}
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9 ().+:_-]+)")
_TOKEN = re.compile(r"\(|\)|\bAND\b|\bOR\b|\bWITH\b|[/,|]|[^\s()/,|]+", re.I)
TAG_CHARACTERS = 4000  # in which an SPDX tag is looked for

# Phrases that only one licence has, over white space as one blank; the first that fits is taken.
PHRASES = {
    "GRANT": "permission is hereby granted, free of charge, to any person obtaining a copy",
    "FORMS": "redistribution and use in source and binary forms",
    "USE": "this software for any purpose with or without fee",
}
TEXTS = r"""
AGPL-3.0-or-later gnu affero general public license
LGPL-3.0-or-later gnu lesser general public license.{0,200}version 3
LGPL-2.1-or-later gnu lesser general public license
LGPL-2.0-or-later gnu library general public license
GPL-3.0-or-later  gnu general public license.{0,200}version 3
GPL-2.0-or-later  gnu general public license
Apache-2.0        apache(?: software)? license,? ?(?:version |v\.? ?)?2\.0
MPL-2.0           mozilla public license,? ?(?:version|v\.) ?2\.0
MPL-1.1           mozilla public license
EPL-2.0           eclipse public license ?- ?v ?2\.0
EPL-1.0           eclipse public license
CDDL-1.0          common development and distribution license
BSL-1.0           boost software license ?- ?version 1\.0
Unlicense         this is free and unencumbered software released into the public domain
CC0-1.0           cc0 1\.0 universal|creative commons (?:zero|cc0)|cc0 public domain dedication
PSF-2.0           python software foundation license version 2
Artistic-2.0      the artistic license 2\.0
WTFPL             do what the fuck you want to public license
OFL-1.1           sil open font license|GRANT of the font software
Unicode-DFS-2016  GRANT of the unicode data files
FSFAP             copying and distribution of this file, with or without modification, are permitted in any medium
MIT               GRANT.{0,800}the above copyright notice and this permission notice
MIT-0             GRANT
0BSD              permission to use, copy, modify, and/or distribute USE is hereby granted\. the software is provided
ISC               permission to use, copy, modify,? and(?:/or)? distribute USE
Zlib              altered source versions must be plainly marked as such
BSD-4-Clause      FORMS.{0,1000}all advertising materials mentioning features or use of this software
BSD-3-Clause      FORMS.{0,1500}(?:neither the names?|may not be used to endorse|the names? of .{0,80} may not)
BSD-2-Clause      FORMS
MIT               \A(?:the )?mit license
"""
_PHRASE = re.compile(r"\b(?:GRANT|FORMS|USE)\b")
_TEXTS = [
    (name, re.compile(_PHRASE.sub(lambda match: PHRASES[match[0]], phrase)))
    for name, phrase in (line.split(None, 1) for line in TEXTS.strip().splitlines())
]


def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9+ ]", "", re.sub(r"[-_/]+", " ", name.lower())).split()
    return " ".join(word for word in words if word not in _EMPTY_WORDS)


_NAME_OF = {name: to for to, names in _SPELLINGS.items() for name in names.split("; ")}
_NAME_OF |= {_plain(name): name for name in PERMISSIVE if _plain(name)}


def normalise(name: str) -> str:
    """Give the SPDX name of one licence as people write it; what is not known stays as it is."""
    name = name.strip().strip("\"'")
    known = _KNOWN.get(name.lower())
    if known:
        return known
    plain = _plain(name)
    if plain in _NAME_OF:
        return _NAME_OF[plain]
    # Debian: GPL-2+, LGPL-2.1+
    match = re.fullmatch(r"(A?L?GPL)-?v?(\d)(\.\d)?(\+?)", name, re.I)
    if match:
        version = f"{match[2]}{match[3] or '.0'}"
        return f"{match[1].upper()}-{version}-{'or-later' if match[4] else 'only'}"
    return name


@lru_cache(maxsize=4096)
def is_allowed(expression: str, allowed: frozenset[str]) -> bool:
    """Say whether an SPDX expression can be satisfied by the allowed licences alone: of `A OR B` one, of `A AND B` both.

    `/`, `,` and `|` between names are read as OR, as Cargo's and Debian's files use them. An exception (WITH) only
    adds permissions. Names are compared in lower case.
    """
    whole = normalise(expression)
    if whole.lower() in allowed:
        return True
    tokens = _TOKEN.findall(expression)
    value, rest = _any(tokens, allowed)
    return value and not rest


def _any(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, tokens = _all(tokens, allowed)
    while tokens and (tokens[0].upper() == "OR" or tokens[0] in "/,|"):
        other, tokens = _all(tokens[1:], allowed)
        value = value or other
    return value, tokens


def _all(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    value, tokens = _one(tokens, allowed)
    while tokens and tokens[0].upper() == "AND":
        other, tokens = _one(tokens[1:], allowed)
        value = value and other
    return value, tokens


def _one(tokens: list[str], allowed: frozenset[str]) -> tuple[bool, list[str]]:
    if tokens and tokens[0] == "(":
        value, tokens = _any(tokens[1:], allowed)
        return value, tokens[1:]
    words: list[str] = []
    while tokens and tokens[0].upper() not in ("AND", "OR", "WITH") and tokens[0] not in "(),|/":
        words.append(tokens[0])
        tokens = tokens[1:]
    if tokens and tokens[0].upper() == "WITH":
        tokens = tokens[2:]
    return normalise(" ".join(words)).lower() in allowed, tokens


def as_expressions(value: object) -> list[str]:
    """Give the licences that a record states: a text, a list of them, or nothing. Any of a list may be chosen."""
    values: Iterable[object] = (
        value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    )
    found = [
        item for item in values if isinstance(item, str) and item.strip().lower() not in UNKNOWN
    ]
    return [item.strip() for item in found]


def tag_of(text: str) -> str | None:
    """Give the SPDX expression that a file's own tag states."""
    start = text[:TAG_CHARACTERS]
    if "SPDX-License-Identifier" not in start:
        return None
    match = _TAG.search(start)
    # `-->` and `*/` end comments
    return match[1].strip().rstrip("-").strip() or None if match else None


def of_text(text: str) -> str | None:
    """Give the licence that a text is, by phrases that only it has; None if it is none of those known here."""
    start = " ".join(text[:60_000].lower().split())
    found = [
        (match.start(), number, name)
        for number, (name, phrase) in enumerate(_TEXTS)
        if (match := phrase.search(start))
    ]
    # A licence may mention others further down: what a text says first, it is.
    return min(found)[2] if found else None
