"""Which language a file is in: by its name, its extension, its first line, and for shared extensions its content.

The table is the one of StarCoder's manual inspection (StarCoder §3.1: 267 extensions; 88 names, which the paper counts
as 86). Files without an extension, which the original left out, are told by name or by `#!`. Knows nothing of
licences.
"""

from __future__ import annotations

import re
from functools import cache

from megatron.curation.select.language_content import BY_CONTENT

EXTENSIONS_OF = {
    "ada": "ada adb ads",
    "agda": "agda",
    "alloy": "als",
    "antlr": "g4",
    "applescript": "applescript scpt",
    "assembly": "a51 asm nasm",
    "augeas": "aug",
    "awk": "auk awk gawk mawk nawk",
    "batchfile": "bat cmd",
    "bluespec": "bsv",
    "c": "c h",
    "c++": "c++ cc cp cpp cxx h++ hh hpp hxx inl ipp tcc tpp",
    "c-sharp": "cake cs cshtml",
    "clojure": "boot clj cljc cljs cljx",
    "cmake": "cmake",
    "coffeescript": "_coffee cjsx coffee cson iced",
    "common-lisp": "asd lisp lsp ny",
    "css": "css",
    "cuda": "cu cuh",
    "dart": "dart",
    "dockerfile": "dockerfile",
    "elixir": "ex exs",
    "elm": "elm",
    "emacs-lisp": "el emacs",
    "erlang": "erl escript hrl yrl",
    "f-sharp": "fs fsi fsx",
    "fortran": "f f03 f08 f90 f95 for fpp",
    "glsl": "fp frag fsh fshader geom glsl glslv shader vert vsh vshader",
    "go": "go",
    "groovy": "groovy gtpl gvy",
    "haskell": "hs hsc",
    "html": "htm html xht xhtml",
    "idris": "idr lidr",
    "isabelle": "thy",
    "java": "java",
    "java-server-pages": "jsp",
    "javascript": "es6 js jsm pac sjs xsjslib",
    "json": "json",
    "julia": "jl",
    "kotlin": "kt kts",
    "lean": "hlean lean",
    "literate-agda": "lagda",
    "literate-coffeescript": "litcoffee",
    "literate-haskell": "lhs",
    "lua": "lua nse wlua",
    "makefile": "mak mk",
    "maple": "mpl",
    "markdown": "markdown md mkd mkdn ron",
    "mathematica": "ma mathematica mt nb wl",
    "matlab": "matlab",
    "ocaml": "eliom eliomi ml ml4 mli mll mly",
    "pascal": "dfm lpr pas",
    "perl": "perl pl pm psgi t",
    "php": "ctp php phpt",
    "powershell": "ps1 psd1 psm1",
    "prolog": "prolog yap",
    "protocol-buffer": "proto",
    "python": "bzl gyp py pyde pyw",
    "r": "r rd rsx",
    "racket": "scrbl",
    "restructuredtext": "rst",
    "rmarkdown": "rmd",
    "ruby": "builder gemspec jbuilder podspec rabl rake rb rbw ru ruby thor",
    "rust": "rs",
    "sas": "sas",
    "scala": "sbt scala",
    "scheme": "scm sld sps",
    "shell": "bash bats command ksh sh tmux tool zsh",
    "smalltalk": "st",
    "solidity": "sol",
    "sparql": "rq sparql",
    "sql": "cql db2 ddl pkb pks plb plsql prc sql udf",
    "stan": "stan",
    "standard-ml": "fun sml",
    "stata": "ado do doh mata matah",
    "systemverilog": "sv svh vh",
    "tcl": "adp tcl tm",
    "tcsh": "csh tcsh",
    "tex": "bbx bib cbx dtx ins lbx mkii mkiv mkvi sty tex",
    "thrift": "thrift",
    "typescript": "ts tsx",
    "verilog": "veo",
    "vhdl": "vhd vhdl vhi vho vhw",
    "visual-basic": "bas frm vb vba vbhtml vbs",
    "xslt": "xsl xslt",
    "yacc": "y yacc",
    "yaml": "yaml yml",
    "zig": "zig",
}
LANGUAGES = tuple(EXTENSIONS_OF)

# Whole names, in lower case, of files that have no extension or one that says something else.
NAMES_OF = {
    "cmake": "cmakelists.txt",
    "dockerfile": "dockerfile containerfile",
    "emacs-lisp": ".emacs _emacs .spacemacs",
    "groovy": "jenkinsfile",
    "javascript": "jakefile",
    "json": ".eslintrc .jshintrc .babelrc composer.lock pipfile.lock",
    "makefile": "makefile gnumakefile bsdmakefile kbuild makefile.am makefile.in makefile.inc",
    "markdown": "readme.md contents.lr",
    "perl": "cpanfile makefile.pl",
    "python": "sconstruct sconscript wscript snakefile build.bazel workspace.bazel",
    "r": ".rprofile",
    "ruby": "rakefile gemfile guardfile capfile vagrantfile podfile fastfile appfile brewfile thorfile berksfile"
    " buildfile dangerfile puppetfile .irbrc .pryrc",
    "shell": ".bashrc .bash_profile .bash_aliases .bash_logout .profile .zshrc .zprofile .zshenv .kshrc apkbuild"
    " pkgbuild gradlew .login",
    "tcsh": ".cshrc .tcshrc",
    "yaml": ".clang-format .clang-tidy .gemrc citation.cff",
}

INTERPRETERS_OF = {
    "applescript": "osascript",
    "awk": "awk gawk mawk nawk",
    "clojure": "bb",
    "coffeescript": "coffee",
    "common-lisp": "sbcl clisp ecl lisp",
    "elixir": "elixir",
    "emacs-lisp": "emacs",
    "erlang": "escript",
    "groovy": "groovy",
    "haskell": "runhaskell runghc stack",
    "javascript": "node nodejs gjs js rhino qjs",
    "julia": "julia",
    "kotlin": "kotlin",
    "lua": "lua luajit texlua",
    "makefile": "make",
    "ocaml": "ocaml ocamlrun ocamlscript",
    "perl": "perl",
    "php": "php",
    "powershell": "pwsh powershell",
    "prolog": "swipl yap gprolog",
    "python": "python pypy pypy3",
    "r": "rscript",
    "ruby": "ruby jruby macruby rake",
    "scala": "scala amm",
    "scheme": "guile gsi scheme csi",
    "shell": "sh bash dash ash ksh mksh zsh bats rc",
    "tcl": "tclsh wish expect jimsh",
    "tcsh": "csh tcsh",
    "typescript": "deno ts-node tsx bun",
}
SHEBANG = re.compile(r"#!\s*(\S+)([^\n]*)")
MODELINE = re.compile(r"-\*-\s*(?:[^;]*;\s*)*?(?:mode:\s*)?([\w+-]+)\s*(?:;.*)?-\*-", re.I)
NO_SHEBANG_EXTENSIONS = {"txt", "in", "cgi", "fcgi"}  # the first line may say more than these do


def _inverted(table: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for language, names in table.items():
        for name in names.split():
            assert name not in found, f"{name} belongs to {found.get(name)} and {language}"
            found[name] = language
    return found


LANGUAGE_OF_EXTENSION = _inverted(EXTENSIONS_OF)
LANGUAGE_OF_NAME = _inverted(NAMES_OF)
LANGUAGE_OF_INTERPRETER = _inverted(INTERPRETERS_OF)


def identify(path: str, text: str) -> tuple[str | None, str]:
    """Give a file's language and what said so: name, extension, content or shebang.

    None with "extension" for one of no language in the table, with "content" for a shared extension whose content
    belongs to none of them, with "no extension" for what nothing is known of.
    """
    name = path.rpartition("/")[2].lower()
    if name in LANGUAGE_OF_NAME:
        return LANGUAGE_OF_NAME[name], "name"
    stem, dot, extension = name.rpartition(".")
    if (stem or name).startswith("dockerfile"):
        return "dockerfile", "name"
    if not dot or extension in NO_SHEBANG_EXTENSIONS:
        language = by_shebang(text)
        if language:
            return language, "shebang"
        language = by_modeline(text)
        if language:
            return language, "modeline"
        return None, f"extension .{extension}" if dot else "no extension"
    if extension in BY_CONTENT:
        return BY_CONTENT[extension](text), f"content of .{extension}"
    return LANGUAGE_OF_EXTENSION.get(extension), f"extension .{extension}"


def by_modeline(text: str) -> str | None:
    """Give the language that the first line names for Emacs: `-*- C++ -*-`, as C++ headers without extension do."""
    match = MODELINE.search(text.partition("\n")[0][:200])
    if match is None:
        return None
    name = match[1].lower().replace("_", "-")
    return name if name in EXTENSIONS_OF else LANGUAGE_OF_INTERPRETER.get(name)


@cache
def _of_interpreter(program: str) -> str | None:
    name = re.sub(r"[-.\d]+$", "", program.rpartition("/")[2].lower())
    return LANGUAGE_OF_INTERPRETER.get(name)


def by_shebang(text: str) -> str | None:
    """Give the language of the interpreter that the first line names, with or without `env`."""
    match = SHEBANG.match(text.removeprefix("\ufeff"))
    if match is None:
        return None
    program, arguments = match.groups()
    if program.endswith("/env"):
        # env -S VAR=value python3 -u: the first word that is neither a flag nor a variable
        words = [word for word in arguments.split() if word[0] != "-" and "=" not in word]
        program = words[0] if words else ""
    elif program.rpartition("/")[2] == "sh" and (
        again := re.match(r"(?:[^\n]*\n){1,4}?exec\s+(\S+)", text)
    ):
        # the trick of scripts whose interpreter has no fixed place: sh runs them, and execs it
        return _of_interpreter(again[1].strip('"')) or "shell"
    return _of_interpreter(program)
