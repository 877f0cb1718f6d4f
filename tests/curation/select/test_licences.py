"""SPDX expressions, licence texts, package metadata and DEP-5."""

from pathlib import Path

import pytest

from megatron.curation.select.licence_files import licence_of, parse_dep5
from megatron.curation.select.licences import PERMISSIVE, is_allowed, normalise, of_text

ALLOWED = frozenset(name.lower() for name in PERMISSIVE)
ROOT = Path(__file__).parents[3]

DEP5 = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: 2020 A
License: Expat

Files: src/*.c
 src/gen/*
License: GPL-2+ or BSD-3-clause, and Apache-2.0
 text of it

Files: src/a\\*.c
License: GPL-3

License: Expat
 Permission is
"""


@pytest.mark.parametrize(
    ("expression", "is_ok"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND Apache-2.0", True),
        ("MIT OR GPL-3.0-only AND GPL-2.0-only", True),
        ("(MIT OR Zlib) AND GPL-2.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("MIT/Apache-2.0", True),
        ("Apache License, Version 2.0", True),
        ("The MIT License (MIT)", True),
        ("MIT-Modern-Variant", True),
        ("Variant", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
        ("MIT AND", False),
        (") OR MIT", False),
    ],
)
def test_expression_is_satisfied_by_allowed_licences_alone(expression, is_ok):
    assert is_allowed(expression, ALLOWED) == is_ok


def test_debian_and_classifier_names_become_spdx():
    assert normalise("GPL-2+") == "GPL-2.0-or-later"
    assert normalise("Expat") == "MIT"
    assert normalise("BSD-3-clause") == "BSD-3-Clause"
    assert normalise("LGPL-2.1") == "LGPL-2.1-only"
    assert normalise("something else") == "something else"


def test_licence_texts_are_recognised():
    assert of_text((ROOT / "LICENSE").read_text()) == "Apache-2.0"
    assert of_text("Nothing of the kind.") is None
    font = "Permission is hereby granted, free of charge, to any person obtaining a copy of the Font Software"
    assert of_text(font) == "OFL-1.1" and not is_allowed("OFL-1.1", ALLOWED)
    gpl = "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007 … the GNU Lesser General Public License"
    assert of_text(gpl) == "GPL-3.0-or-later"


def test_licence_texts_of_debian_are_recognised():
    folder = Path("/usr/share/common-licenses")
    if not folder.is_dir():
        pytest.skip("no /usr/share/common-licenses: not a Debian system")
    for name, spdx in (
        ("GPL-2", "GPL-2.0-or-later"),
        ("LGPL-2.1", "LGPL-2.1-or-later"),
        ("MPL-2.0", "MPL-2.0"),
    ):
        assert of_text((folder / name).read_text()) == spdx


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("package.json", '{"license": "MIT"}', "MIT"),
        ("package.json", '{"licenses": [{"type": "MIT"}, {"type": "GPL-2.0"}]}', "MIT OR GPL-2.0"),
        ("package.json", '{"license": ', None),
        ("Cargo.toml", '[package]\nname = "a"\nlicense = "MIT OR Apache-2.0"\n', "MIT OR Apache-2.0"),
        ("Cargo.toml", '[package]\nname = "a"\n[dependencies]\nlicense = "3"\n', None),
        ("pyproject.toml", '[project]\nlicense = {text = "BSD"}\n', "BSD"),
        ("pyproject.toml", '[project]\nclassifiers = ["License :: OSI Approved :: MIT License"]', "MIT"),
        ("setup.cfg", "[metadata]\nlicense = ISC\n", "ISC"),
        ("setup.cfg", "[metadata]\nlicense = file: LICENSE\n", None),
        ("PKG-INFO", "Name: a\nLicense-Expression: MIT AND Zlib\nLicense: x\n", "MIT AND Zlib"),
        ("a.gemspec", "  s.licenses = ['Ruby', 'x']", "Ruby"),
        ("LICENSE.txt", "Permission to use, copy, modify, and distribute this software for any purpose with or "
         "without fee", "ISC"),
    ],
)  # fmt: skip
def test_metadata_files_state_a_licence(name, content, licence):
    found = licence_of({name: content})
    assert (found and found[0]) == licence


def test_files_named_after_licences_are_a_choice_and_others_hold_together():
    mit, apache = "MIT License", "Apache License Version 2.0"
    assert licence_of({"LICENSE-MIT": mit, "LICENSE-APACHE": apache}) == (
        "Apache-2.0 OR MIT",
        "LICENSE-APACHE",
    )
    assert licence_of({"LICENSE": mit, "LICENSE.vendor": apache})[0] == "MIT AND Apache-2.0"


def test_dep5_gives_the_licence_of_the_last_pattern_that_matches():
    dep5 = parse_dep5(DEP5)
    assert dep5 is not None
    assert dep5.licence_of("README") == "MIT"
    assert dep5.licence_of("src/deep/b.c") == "(GPL-2.0-or-later OR BSD-3-Clause) AND Apache-2.0"
    assert dep5.licence_of("src/a*.c") == "GPL-3.0-only"
    assert is_allowed(dep5.licence_of("src/gen/x.py"), ALLOWED)
    assert parse_dep5("This package was debianized by hand.\nLicense: MIT\n") is None
