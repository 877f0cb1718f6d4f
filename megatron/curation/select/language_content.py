"""Extensions that several languages share, told apart by what is in the file.

Of the lines of an extension the first decides whose expression is found in the file's start, or that has none. A language
in brackets is not among StarCoder's. Knows nothing of names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

LOOKED_AT = 12_000  # characters

# Expressions that the table names.
NAMED = {
    "OBJECTIVE_C": (
        r"^\s*(?:@(?:interface|implementation|protocol|property|end|class|import|selector)\b|#import\s)"
    ),
    "XML": r"\A\s*<(?:\?xml|!DOCTYPE|[a-zA-Z][\w:]*[\s>])",
    "C_PLUS_PLUS": (
        r"^\s*(?:template\s*<|namespace(?:\s+[\w:]+)?\s*\{?|using\s+(?:namespace\s|\w+\s*=)|"
        r"(?:class|enum\s+class)\s+(?:[A-Z_]+\s+)?\w+(?:\s+final)?\s*[:{;]|class\s+\w+\s*$|(?:public|private|protected)\s*:|"
        r"#\s*include\s*<(?:[a-z_]+|c(?:std\w+|math|assert|errno|ctype))>|constexpr\s|virtual\s|explicit\s|"
        r"friend\s|extern\s+\"C\+\+\")|\bstd::\w|\boperator\s*[=+\-<>\[(]|\bnoexcept\b|\bnullptr\b|\w+::~?\w+\s*\("
    ),
    "PERL": (
        r"^\s*(?:use\s+(?:strict|warnings|vars|lib|base|parent|Test::|v?5|[A-Z]\w*(?:::\w+)*\s*[;(q'\"])|package\s+[\w:]+\s*[;{]|"
        r"my\s*[$@%(]|our\s*[$@%(]|sub\s+\w+|BEGIN\s*\{|=(?:pod|head\d|cut|over|item)\b|require\s+[\"'\w])|\A#!.*perl|\$_\b|@ARGV|"
        r"^\s*[$@%]\w+\s*(?:=|\{|\[)"
    ),
    "PROLOG": (
        r"^\s*:-\s*(?:module|use_module|dynamic|initialization|discontiguous|ensure_loaded|set_prolog_flag)\b|"
        r"^[a-z]\w*(?:\([^\n%]*\))?\s*:-|^[a-z]\w*\([^()\n]*\)\.\s*(?:%.*)?$|^%[^\n]*\n(?:%[^\n]*\n)*\s*[a-z]\w*\("
    ),
    "MATLAB": r"^\s*(?:function\b|%|classdef\b|end\s*;?$|clear\b|close all|clc\b|\w+\s*=.*;\s*(?:%.*)?$|for\s+\w+\s*=)",
    "ASSEMBLY": r"^\s*(?:\.(?:text|data|globl|global|section|align|macro|type|set|code32)\b|#include\b|\w+:\s*$|\w+:\s)",
    "SQL": (
        r"(?i)\b(?:select\s|insert\s+into|create\s|update\s+\w|delete\s+from|alter\s|drop\s|declare\s|begin\b|"
        r"grant\s|with\s+\w+\s+as|set\s+\w|exec\b|merge\s+into|use\s+\w|comment\s+on|truncate\s|explain\s)"
    ),
    "SMALLTALK": (
        r"^!|\bsubclass:\s*#|^\w+(?:\s+class)?\s*(?:>>|extend\s*\[)|\|\s*\w+[\w\s]*\|\s*$|\]\s+ifTrue:|"
        r"Object subclass"
    ),
    "COQ": r"^\s*(?:Require\s+(?:Import|Export)?|Theorem|Lemma|Definition|Fixpoint|Inductive|Proof\.|Qed\.|Section\s)",
    "VERILOG": r"^\s*(?:module\s+\w+|`(?:timescale|define|include|ifn?def)|endmodule|(?:input|output|reg|wire)\s)",
}

RULES = r"""
as     assembly        ^\s*(?:\.(?:text|data|globl|section)\b|mov[lq]?\s)
bas    (xml)           \A\s*<
bas    visual-basic
cgi    perl            PERL
cgi    python          ^\s*(?:import|from)\s+\w+
cgi    shell           \A#!.*sh\b
cl     common-lisp     ^\s*\((?:def\w+|in-package|eval-when)\b
cl     (opencl)
cls    tex             \\(?:NeedsTeXFormat|ProvidesClass|LoadClass|DeclareOption)
cls    visual-basic    ^\s*(?:VERSION \d\.\d CLASS|Attribute VB_Name|Option Explicit)
cls    (apex)
ex     elixir          ^\s*(?:defmodule|defprotocol|defimpl|import|use|alias)\s|\bdo\s*$
f      (forth)         ^:\s+\S+\s.*;\s*$|^\\[ ]
f      fortran
for    (template)      \{%|\{\{
for    fortran         (?im)^\s*(?:program|subroutine|end|call|c\s|\*)
frag   glsl            \b(?:void\s+main|gl_FragColor|uniform\s|varying\s|precision\s)
frm    visual-basic    ^\s*(?:VERSION \d|Attribute VB_|Begin\s)
fs     glsl            \b(?:void\s+main\s*\(|gl_FragColor|uniform\s+\w+\s+\w+;|varying\s)|^\s*#version\s
fs     (forth)         ^:\s+\S+\s.*;\s*$|^\\[ ]
fs     f-sharp
fun    standard-ml     ^\s*(?:functor|structure|signature|fun|val)\s
html   (template)      \{\{\s*define\s|\A\s*\{\{-?\s*/\*
html   html
inc    php             <\?(?:php|=|\s)
inc    c++             C_PLUS_PLUS
inc    pascal          (?im)^\s*(?:procedure|function|unit|const|var|\{\$\w+)\b.*;?\s*$
inc    assembly        ^\s*(?:%(?:macro|define|if\w*)\b|\w+\s+equ\s|\.(?:macro|equ)\b)
inc    c               ^\s*#\s*(?:include|define|ifn?def)\b
inc    sql             (?im)^\s*(?:create|drop)\s+(?:table|procedure)\b
ins    tex             \\(?:input|generate|keepsilent|usedir|preamble)
l      common-lisp     ^\s*\((?:def\w+|in-package|setq)\b
l      (lex)
lsp    common-lisp     ^\s*[(;]
m      (objective-c)   OBJECTIVE_C
m      (mercury)       ^:-\s*(?:module|interface|pred|import_module)\b
m      mathematica     \(\*|\bBeginPackage\[|^\w+\[\w+_\]\s*:=|\w+::usage\b
m      (objective-c)   ^\s*(?:#include|/\*|//)|^\s*[-+]\s*\(\w
m      matlab          MATLAB
md     (gcc)           ^\(define_(?:insn|expand|attr)\b|^;; (?:Copyright|Machine)
md     markdown
ml     standard-ml     ^\s*(?:structure|functor)\s+\w+.*=\s*(?:struct)?\s*$|=>\s*(?:fn|case)\b
ml     ocaml
mod    (go)
ms     (roff)
mt     mathematica     \bTest\[|\(\*
pas    pascal          (?i)\b(?:unit|program|begin|interface|procedure|function|library)\b
php    (hack)          \A<\?hh\b
php    php
pl     perl            \A#!.*\bperl
pl     prolog          \A#!.*\b(?:swipl|prolog|yap)
pl     prolog          PROLOG
pl     perl
pm     (xpm)           \A\s*/\*\s*XPM
pm     perl            PERL
pm     (raku)          ^\s*(?:class|module|grammar)\s+\w
pm     perl
pp     pascal          (?i)^\s*(?:unit|program)\s+\w+\s*;
prc    sql             (?i)\b(?:create|procedure|begin)\b
pro    (qmake)         ^\s*(?:TEMPLATE|QT|TARGET|SOURCES|HEADERS|CONFIG|INCLUDEPATH)\s*[+\-*]?=
pro    (idl)           (?im)^\s*(?:pro|function)\s+\w+.*$[\s\S]*^\s*end\s*$
pro    prolog          PROLOG
r      (rebol)         \A\s*(?:REBOL|Red)\s*\[
r      r               <-|\bfunction\s*\(|\blibrary\(|^\s*#|\w+\s*=\s*c\(|\\name\{
rd     r               \\(?:name|title|description|usage|docType)\{
rq     sparql          (?i)\b(?:select|prefix|construct|ask|describe)\b
rs     (xml)           XML
rs     (renderscript)  ^\s*#pragma\s+(?:version|rs)
rs     rust
s      assembly        ASSEMBLY
sc     scala           ^\s*(?:import\s+[\w.]+\.|object\s|class\s|def\s|val\s)
sc     (supercollider)
shader glsl            ^\s*#(?:version|shader)\b|\bvoid\s+main\s*\(
shader (unity)
sol    solidity        \b(?:pragma\s+solidity|contract\s+\w+|library\s+\w+|interface\s+\w+)
sql    sql             SQL
st     smalltalk       SMALLTALK
t      perl            PERL
t      perl            \A#!.*perl
t      (turing)
tcc    (xml)           ^\s*<
tcc    c++
tm     tcl             ^\s*(?:package\s+provide|namespace\s+eval|proc\s)
tool   shell           \A#!.*sh\b
ts     (qt)            \A\s*(?:<\?xml|<!DOCTYPE TS|<TS\b)
ts     typescript
tsx    (tiled)         \A\s*<\?xml
tsx    typescript
txt    (text)
v      (coq)           COQ
v      verilog         VERILOG
vert   glsl            \b(?:void\s+main|gl_Position|attribute\s|uniform\s|varying\s)
y      yacc            ^%(?:%|token|union|type|start|left|\{)
"""


def _rules() -> dict[str, list[tuple[str | None, re.Pattern[str]]]]:
    """Read the table: of each extension its languages, None for one that is not wanted, with what tells them."""
    found: dict[str, list[tuple[str | None, re.Pattern[str]]]] = {}
    for line in RULES.strip().splitlines():
        extension, language, *rest = line.split(None, 2)
        expression = "".join(rest)
        expression = NAMED[expression] if expression.isidentifier() else expression
        wanted = None if language.startswith("(") else language
        found.setdefault(extension, []).append((wanted, re.compile(expression, re.M)))
    return found


def _decider(rules: Sequence[tuple[str | None, re.Pattern[str]]]) -> Callable[[str], str | None]:
    def decide(text: str) -> str | None:
        start = text[:LOOKED_AT]
        return next((language for language, told in rules if told.search(start)), None)

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
_WORDS = (
    '::|template|namespace|class|using |public|private|protected|constexpr|virtual|explicit|friend|"C++"|'
    "operator|noexcept|nullptr|#include <c|# include <c|<vector>|<string>|<map>|<memory>|<iostream>|<utility>|<functional>"
)
C_PLUS_PLUS_WORDS = tuple(_WORDS.split("|"))
_OBJECTIVE_C = re.compile(NAMED["OBJECTIVE_C"], re.M)
_C_PLUS_PLUS = re.compile(NAMED["C_PLUS_PLUS"], re.M)

BY_CONTENT = {"h": _header} | {extension: _decider(rules) for extension, rules in _rules().items()}
