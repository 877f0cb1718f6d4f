"""Languages by name, extension, first line and content; licences; opt-outs."""

import pytest

from megatron.curation.run.document import Document, Drop, Keep
from megatron.curation.select.languages import EXTENSIONS_OF, LANGUAGES, identify
from megatron.curation.select.opt_out import read_opt_out
from megatron.curation.select.stage import SelectConfig, select_stage
from megatron.errors import ConfigError, DataError


def select(config, text="x = 1\n", **metadata):
    return select_stage(config).apply(Document("1", text, metadata))


def rule(answer):
    assert isinstance(answer, Drop), answer
    return answer.rule


def test_table_has_the_88_names_and_each_extension_once():
    assert len(LANGUAGES) == 88
    extensions = " ".join(EXTENSIONS_OF.values()).split()
    assert len(extensions) == len(set(extensions)) == 259


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("src/a.PY", "", "python"),
        ("Makefile", "all:\n", "makefile"),
        ("x/Dockerfile.dev", "FROM a", "dockerfile"),
        ("CMakeLists.txt", "project(a)", "cmake"),
        ("notes.txt", "hello", None),
        ("run", "#!/usr/bin/env -S python3 -u\n", "python"),
        ("run", "#!/bin/bash\n", "shell"),
        ("run", '#!/bin/sh\n# \\\nexec tclsh8.6 "$0"\n', "tcl"),
        ("vector", "// -*- C++ -*-\n#pragma once", "c++"),
        ("configure.in", "#! /usr/bin/perl -w\n", "perl"),
        ("a.h", "#ifndef A\nint f(void);\n", "c"),
        ("a.h", "namespace a {\nclass B;\n}", "c++"),
        ("a.h", "#import <A/A.h>\n@interface B : C", None),
        ("a.m", "function y = f(x)\n  y = x;\nend\n", "matlab"),
        ("a.m", "@implementation A\n", None),
        ("a.m", "f[x_] := x (* double *)", "mathematica"),
        ("a.pl", "use strict;\nmy $x = 1;\n", "perl"),
        ("a.pl", ":- module(a, [f/1]).\nf(X) :- g(X).\n", "prolog"),
        ("a.v", "module a(input b);\nendmodule\n", "verilog"),
        ("a.v", "Theorem a : True.\nProof. Qed.\n", None),
        ("a.r", "x <- c(1, 2)\n", "r"),
        ("a.r", "REBOL [Title: 1]", None),
        ("a.sql", "SELECT a FROM b;", "sql"),
        ("a.sql", "1\t2\t3\n", None),
        ("a.ts", "export const a = 1;", "typescript"),
        ("a.ts", "<?xml version='1.0'?><TS>", None),
        ("a.fs", "let f x = x + 1", "f-sharp"),
        ("a.fs", "uniform vec3 a;\nvoid main() {}", "glsl"),
        ("a.cls", "\\NeedsTeXFormat{LaTeX2e}", "tex"),
        ("a.rs", "fn main() {}", "rust"),
        ("a.xyz", "", None),
        (".bashrc", "alias a=b", "shell"),
    ],
)
def test_language_is_told_by_name_extension_first_line_or_content(path, text, language):
    assert identify(path, text)[0] == language


def test_language_is_written_into_the_record_and_others_are_dropped():
    config = SelectConfig(any_license=True, languages=("python", "C#"))
    answer = select(config, path="a.py")
    assert isinstance(answer, Keep) and answer.document.metadata["language"] == "python"
    assert isinstance(select(config, path="a.cs"), Keep)
    answer = select(config, path="a.go")
    assert (rule(answer), answer.language) == ("language-not-wanted", "go")
    answer = select(config, path="a.xyz")
    assert (rule(answer), answer.detail) == ("unknown-language", "extension .xyz")


def test_record_without_a_path_is_taken_at_its_word_or_by_its_extension():
    config = SelectConfig(any_license=True)
    assert isinstance(select(config, lang="C++"), Keep)
    assert isinstance(select(config, ext="rb"), Keep)
    assert rule(select(config)) == "unknown-language"


@pytest.mark.parametrize(
    ("text", "license", "expected"),
    [
        ("", "MIT", None),
        ("", ["GPL-3.0", "MIT"], None),
        ("", "GPL-2.0-only", "license"),
        ("", None, "no-license"),
        ("", "NOASSERTION", "no-license"),
        ("// SPDX-License-Identifier: GPL-2.0-only\n", "MIT", "license"),
        ("/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */", "GPL-2.0", None),
    ],
)
def test_licence_of_the_file_counts_before_that_of_the_repository(text, license, expected):
    answer = select(SelectConfig(), text + "x = 1\n", path="a.c", license=license)
    assert (None if isinstance(answer, Keep) else answer.rule) == expected


def test_unlicensed_files_and_other_licences_can_be_allowed():
    assert isinstance(select(SelectConfig(unlicensed="keep"), path="a.c"), Keep)
    config = SelectConfig(licenses=("GPL-2.0-only",))
    assert isinstance(select(config, path="a.c", license="GPLv2"), Keep)
    assert rule(select(config, path="a.c", license="MIT")) == "license"


def test_opt_out_of_owners_and_repositories_in_any_spelling(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(
        '# people\nOctocat\nhttps://github.com/Some/Thing.git  # asked in May\n{"repo": "a/b"}\n'
    )
    config = SelectConfig(any_license=True, opt_out=(str(path),))
    for repo, is_out in (
        ("octocat/hello", True),
        ("OCTOCAT/other", True),
        ("octocats/hello", False),
        ("some/thing", True),
        ("some/things", False),
        ("git@github.com:a/b.git", True),
        ("a/c", False),
    ):
        answer = select(config, path="a.py", repo=repo)
        assert isinstance(answer, Drop) == is_out, repo
    assert select(config, path="a.py", repo="a/b").detail == "a/b in out.txt"


def test_opt_out_line_that_is_no_name_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("fine\ntwo words\n")
    with pytest.raises(DataError, match=r"out\.txt:2 is no name: 'two words'"):
        read_opt_out([path])


def test_unknown_language_is_named_with_those_known():
    with pytest.raises(ConfigError, match="--languages klingon is not among the 88"):
        select_stage(SelectConfig(languages=("klingon",)))
