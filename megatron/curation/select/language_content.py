"""Extensions that several languages share, told apart by what is in the file.

For each extension an ordered list of (language, expression): the first that is found decides, else the default. None
stands for a language that is not among StarCoder's. Only the start of a file is looked at. Knows nothing of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LOOKED_AT = 12_000  # characters
Rule = tuple[str | None, str]

OBJECTIVE_C = (
    r"^\s*(?:@(?:interface|implementation|protocol|property|end|class|import|selector)\b|#import\s)"
)
XML = r"\A\s*<(?:\?xml|!DOCTYPE|[a-zA-Z][\w:]*[\s>])"
C_PLUS_PLUS = (
    r"^\s*(?:template\s*<|namespace(?:\s+[\w:]+)?\s*\{?|using\s+(?:namespace\s|\w+\s*=)|"
    r"(?:class|enum\s+class)\s+(?:[A-Z_]+\s+)?\w+(?:\s+final)?\s*[:{;]|class\s+\w+\s*$|(?:public|private|protected)\s*:|"
    r"#\s*include\s*<(?:[a-z_]+|c(?:std\w+|math|assert|errno|ctype))>|constexpr\s|virtual\s|explicit\s|"
    r"friend\s|extern\s+\"C\+\+\")|\bstd::\w|\boperator\s*[=+\-<>\[(]|\bnoexcept\b|\bnullptr\b|\w+::~?\w+\s*\("
)
PERL = (
    r"^\s*(?:use\s+(?:strict|warnings|vars|lib|base|parent|Test::|v?5|[A-Z]\w*(?:::\w+)*\s*[;(q'\"])|package\s+[\w:]+\s*[;{]|"
    r"my\s*[$@%(]|our\s*[$@%(]|sub\s+\w+|BEGIN\s*\{|=(?:pod|head\d|cut|over|item)\b|require\s+[\"'\w])|\A#!.*perl|\$_\b|@ARGV|"
    r"^\s*[$@%]\w+\s*(?:=|\{|\[)"
)
PROLOG = (
    r"^\s*:-\s*(?:module|use_module|dynamic|initialization|discontiguous|ensure_loaded|set_prolog_flag)\b|"
    r"^[a-z]\w*(?:\([^\n%]*\))?\s*:-|^[a-z]\w*\([^()\n]*\)\.\s*(?:%.*)?$|^%[^\n]*\n(?:%[^\n]*\n)*\s*[a-z]\w*\("
)

RULES: dict[str, tuple[list[Rule], str | None]] = {
    "as": ([("assembly", r"^\s*(?:\.(?:text|data|globl|section)\b|mov[lq]?\s)")], None),
    "bas": ([(None, r"\A\s*<")], "visual-basic"),
    "cgi": (
        [("perl", PERL), ("python", r"^\s*(?:import|from)\s+\w+"), ("shell", r"\A#!.*sh\b")],
        None,
    ),
    "cl": ([("common-lisp", r"^\s*\((?:def\w+|in-package|eval-when)\b")], None),  # else OpenCL
    "cls": (
        [
            ("tex", r"\\(?:NeedsTeXFormat|ProvidesClass|LoadClass|DeclareOption)"),
            ("visual-basic", r"^\s*(?:VERSION \d\.\d CLASS|Attribute VB_Name|Option Explicit)"),
        ],
        None,  # Apex, OpenEdge
    ),
    "ex": (
        [("elixir", r"^\s*(?:defmodule|defprotocol|defimpl|import|use|alias)\s|\bdo\s*$")],
        None,
    ),
    "f": ([(None, r"^:\s+\S+\s.*;\s*$|^\\ ")], "fortran"),  # Forth
    "for": (
        [(None, r"\{%|\{\{"), ("fortran", r"(?im)^\s*(?:program|subroutine|end|call|c\s|\*)")],
        None,
    ),
    "frag": ([("glsl", r"\b(?:void\s+main|gl_FragColor|uniform\s|varying\s|precision\s)")], None),
    "frm": ([("visual-basic", r"^\s*(?:VERSION \d|Attribute VB_|Begin\s)")], None),
    "fs": (
        [
            (
                "glsl",
                r"\b(?:void\s+main\s*\(|gl_FragColor|uniform\s+\w+\s+\w+;|varying\s)|^\s*#version\s",
            ),
            (None, r"^:\s+\S+\s.*;\s*$|^\\ "),
        ],
        "f-sharp",
    ),
    "fun": ([("standard-ml", r"^\s*(?:functor|structure|signature|fun|val)\s")], None),
    "html": ([(None, r"\{\{\s*define\s|\A\s*\{\{-?\s*/\*")], "html"),
    "inc": (
        [
            ("php", r"<\?(?:php|=|\s)"),
            ("c++", C_PLUS_PLUS),
            ("pascal", r"(?im)^\s*(?:procedure|function|unit|const|var|\{\$\w+)\b.*;?\s*$"),
            ("assembly", r"^\s*(?:%(?:macro|define|if\w*)\b|\w+\s+equ\s|\.(?:macro|equ)\b)"),
            ("c", r"^\s*#\s*(?:include|define|ifn?def)\b"),
            ("sql", r"(?im)^\s*(?:create|drop)\s+(?:table|procedure)\b"),
        ],
        None,
    ),
    "ins": ([("tex", r"\\(?:input|generate|keepsilent|usedir|preamble)")], None),
    "l": (
        [("common-lisp", r"^\s*\((?:def\w+|in-package|setq)\b"), (None, r"^%%|\A\.\\\"")],
        None,  # Lex, Roff
    ),
    "lsp": ([("common-lisp", r"^\s*[(;]")], None),
    "m": (
        [
            (None, OBJECTIVE_C),
            (None, r"^:-\s*(?:module|interface|pred|import_module)\b"),  # Mercury
            ("mathematica", r"\(\*|\bBeginPackage\[|^\w+\[\w+_\]\s*:=|\w+::usage\b"),
            (None, r"^\s*(?:#include|/\*|//)|^\s*[-+]\s*\(\w"),
            (
                "matlab",
                r"^\s*(?:function\b|%|classdef\b|end\s*;?$|clear\b|close all|clc\b|\w+\s*=.*;\s*(?:%.*)?$|for\s+\w+\s*=)",
            ),
        ],
        None,
    ),
    "md": ([(None, r"^\(define_(?:insn|expand|attr)\b|^;; (?:Copyright|Machine)")], "markdown"),
    "ml": (
        [
            (
                "standard-ml",
                r"^\s*(?:structure|functor)\s+\w+.*=\s*(?:struct)?\s*$|=>\s*(?:fn|case)\b",
            )
        ],
        "ocaml",
    ),
    "mod": ([(None, r"^\s*(?:module\s+[\w./-]+\s*$|AMPL)")], None),
    "ms": ([(None, r"\A\.")], None),
    "mt": ([("mathematica", r"\bTest\[|\(\*")], None),
    "pas": (
        [("pascal", r"(?i)\b(?:unit|program|begin|interface|procedure|function|library)\b")],
        None,
    ),
    "php": ([(None, r"\A<\?hh\b")], "php"),
    "pl": (
        [
            ("perl", r"\A#!.*\bperl"),
            ("prolog", r"\A#!.*\b(?:swipl|prolog|yap)"),
            ("prolog", PROLOG),
            ("perl", PERL),
        ],
        "perl",
    ),
    "pm": (
        [(None, r"\A\s*/\*\s*XPM"), ("perl", PERL), (None, r"^\s*(?:class|module|grammar)\s+\w")],
        "perl",
    ),
    "pp": (
        [
            ("pascal", r"(?i)^\s*(?:unit|program)\s+\w+\s*;"),
            (None, r"^\s*(?:class|define|node)\s+\S+"),
        ],
        None,
    ),
    "prc": ([("sql", r"(?i)\b(?:create|procedure|begin)\b")], None),
    "pro": (
        [
            (
                None,
                r"^\s*(?:TEMPLATE|QT|TARGET|SOURCES|HEADERS|CONFIG|INCLUDEPATH)\s*[+\-*]?=",
            ),  # qmake
            (None, r"(?im)^\s*(?:pro|function)\s+\w+.*$[\s\S]*^\s*end\s*$"),  # IDL
            ("prolog", PROLOG),
        ],
        None,
    ),
    "r": (
        [
            (None, r"\A\s*(?:REBOL|Red)\s*\["),
            ("r", r"<-|\bfunction\s*\(|\blibrary\(|^\s*#|\w+\s*=\s*c\(|\\name\{"),
        ],
        None,
    ),
    "rd": ([("r", r"\\(?:name|title|description|usage|docType)\{")], None),
    "rq": ([("sparql", r"(?i)\b(?:select|prefix|construct|ask|describe)\b")], None),
    "rs": ([(None, XML), (None, r"^\s*#pragma\s+(?:version|rs)")], "rust"),
    "s": (
        [
            (
                "assembly",
                r"^\s*(?:\.(?:text|data|globl|global|section|align|macro|type|set|code32)\b|#include\b|\w+:\s*$|\w+:\s)",
            )
        ],
        None,
    ),
    "sc": (
        [("scala", r"^\s*(?:import\s+[\w.]+\.|object\s|class\s|def\s|val\s)")],
        None,
    ),  # else SuperCollider
    "shader": ([("glsl", r"^\s*#(?:version|shader)\b|\bvoid\s+main\s*\(")], None),  # else Unity's
    "sol": (
        [("solidity", r"\b(?:pragma\s+solidity|contract\s+\w+|library\s+\w+|interface\s+\w+)")],
        None,
    ),
    "sql": (
        [
            (
                "sql",
                r"(?i)\b(?:select\s|insert\s+into|create\s|update\s+\w|delete\s+from|alter\s|drop\s|declare\s|begin\b|"
                r"grant\s|with\s+\w+\s+as|set\s+\w|exec\b|merge\s+into|use\s+\w|comment\s+on|truncate\s|explain\s)",
            )
        ],
        None,  # dumps of values alone, and what is no SQL
    ),
    "st": (
        [
            (
                "smalltalk",
                r"^!|\bsubclass:\s*#|^\w+(?:\s+class)?\s*(?:>>|extend\s*\[)|\|\s*\w+[\w\s]*\|\s*$|\]\s+ifTrue:|Object subclass",
            )
        ],
        None,
    ),
    "t": ([("perl", PERL), ("perl", r"\A#!.*perl")], None),  # else Turing, Terra, cram
    "tcc": ([(None, r"^\s*<")], "c++"),
    "tm": ([("tcl", r"^\s*(?:package\s+provide|namespace\s+eval|proc\s)")], None),
    "tool": ([("shell", r"\A#!.*sh\b")], None),
    "ts": ([(None, r"\A\s*(?:<\?xml|<!DOCTYPE TS|<TS\b)")], "typescript"),
    "tsx": ([(None, r"\A\s*<\?xml")], "typescript"),  # Tiled's maps
    "txt": ([], None),
    "v": (
        [
            (
                None,
                r"^\s*(?:Require\s+(?:Import|Export)?|Theorem|Lemma|Definition|Fixpoint|Inductive|Proof\.|Qed\.|Section\s)",
            ),
            (
                "verilog",
                r"^\s*(?:module\s+\w+|`(?:timescale|define|include|ifn?def)|endmodule|(?:input|output|reg|wire)\s)",
            ),
        ],
        None,
    ),
    "vert": ([("glsl", r"\b(?:void\s+main|gl_Position|attribute\s|uniform\s|varying\s)")], None),
    "y": ([("yacc", r"^%(?:%|token|union|type|start|left|\{)")], None),
}


def _decider(rules: list[Rule], default: str | None) -> Callable[[str], str | None]:
    compiled = [(language, re.compile(expression, re.M)) for language, expression in rules]

    def decide(text: str) -> str | None:
        start = text[:LOOKED_AT]
        for language, expression in compiled:
            if expression.search(start):
                return language
        return default

    return decide


def _header(text: str) -> str | None:
    """Tell a C header from one of C++ or Objective-C; cheap tests first, for there are many headers."""
    start = text[:LOOKED_AT]
    if ("@" in start or "#import" in start) and _OBJECTIVE_C.search(start):
        return None
    if any(word in start for word in C_PLUS_PLUS_WORDS) and _C_PLUS_PLUS.search(start):
        return "c++"
    return "c"


# Without one of these C_PLUS_PLUS finds nothing.
C_PLUS_PLUS_WORDS = (
    *(
        "::",
        "template",
        "namespace",
        "class",
        "using ",
        "public",
        "private",
        "protected",
        "constexpr",
        "virtual",
    ),
    *(
        "explicit",
        "friend",
        '"C++"',
        "operator",
        "noexcept",
        "nullptr",
        "#include <c",
        "# include <c",
    ),
    *("<vector>", "<string>", "<map>", "<memory>", "<iostream>", "<utility>", "<functional>"),
)
_OBJECTIVE_C = re.compile(OBJECTIVE_C, re.M)
_C_PLUS_PLUS = re.compile(C_PLUS_PLUS, re.M)

BY_CONTENT = {"h": _header} | {extension: _decider(*given) for extension, given in RULES.items()}
