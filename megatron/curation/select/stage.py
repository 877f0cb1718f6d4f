"""Selection: which languages, which licences, and whose files are left out (StarCoder §3.1).

Each document that stays has its `language` (a name of the table) and, where one is known, its `license`. Knows nothing
of how repositories are read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron.curation.run.document import Document, Drop, Keep, Stage, Verdict
from megatron.curation.select import languages, licences
from megatron.curation.select.opt_out import OptOut, read_opt_out
from megatron.errors import ConfigError
from megatron.option_field import option

# What others call a language of the table: The Stack's folders, GitHub's names.
ALIASES = {
    "cpp": "c++",
    "csharp": "c-sharp",
    "c#": "c-sharp",
    "f#": "f-sharp",
    "fsharp": "f-sharp",
    "bash": "shell",
    "js": "javascript",
    "ts": "typescript",
    "protobuf": "protocol-buffer",
}


@dataclass(frozen=True)
class SelectConfig:
    """What is selected; by default all languages of the paper, permissive licences, nobody's opt-out."""

    languages: tuple[str, ...] = option((), "only these (default: all 88 names)", metavar="NAME")
    licenses: tuple[str, ...] = option(
        (), "SPDX names that are allowed (default: permissive ones)", metavar="NAME"
    )
    unlicensed: Literal["drop", "keep"] = option(
        "drop", "what becomes of a file whose licence nobody states"
    )
    any_license: bool = option(False, "do not look at licences: they were dealt with before")
    trust_language: bool = option(
        False, "take a record's `language` as it is instead of finding it from path and text"
    )
    opt_out: tuple[str, ...] = option(
        (), "lists of owners and repositories to leave out", metavar="FILE"
    )

    def check(self) -> None:
        """Raise ConfigError for a language that is not in the table, or choices that contradict each other."""
        unknown = [
            name for name in self.languages if language_name(name) not in languages.LANGUAGES
        ]
        if unknown:
            raise ConfigError(
                f"--languages {unknown[0]} is not among the 88; known are {', '.join(languages.LANGUAGES)}"
            )
        if self.any_license and self.licenses:
            raise ConfigError("--any-license and --licenses contradict each other; keep one")

    def wanted_languages(self) -> frozenset[str]:
        """Give the names of the table that are selected."""
        return frozenset(map(language_name, self.languages)) or frozenset(languages.LANGUAGES)

    def allowed_licences(self) -> frozenset[str]:
        """Give the allowed licences in lower case."""
        return frozenset(name.lower() for name in self.licenses or licences.PERMISSIVE)


def language_name(name: str) -> str:
    """Give the table's name of a language as others spell it: C# is c-sharp."""
    plain = name.strip().lower()
    return ALIASES.get(plain, plain.replace(" ", "-").replace("_", "-"))


def select_stage(config: SelectConfig) -> Stage:
    """Give the stage. Opt-outs are asked first, for their owners want to find them in the ledger."""
    config.check()
    opt_out = read_opt_out([Path(path) for path in config.opt_out])
    wanted, allowed = config.wanted_languages(), config.allowed_licences()

    def apply(document: Document) -> Verdict:
        dropped = _opted_out(document, opt_out)
        if dropped:
            return dropped
        language = _language(document, config)
        if isinstance(language, Drop):
            return language
        if language not in wanted:
            return Drop("language-not-wanted", detail=language, language=language)
        added: dict[str, object] = {}
        if document.metadata.get("language") != language:
            added["language"] = language
        if not config.any_license:
            licence = _licence(document, config, allowed)
            if isinstance(licence, Drop):
                return replace(licence, language=language)
            if licence and document.find("license") is None:
                added["license"] = licence
        return Keep(document.with_metadata(**added) if added else document)

    settings = {**vars(config), "opt_out": opt_out.fingerprint if config.opt_out else ""}
    return Stage("select", apply, settings)


def _opted_out(document: Document, opt_out: OptOut) -> Drop | None:
    if not opt_out.names:
        return None
    found = opt_out.find(document.word("repo"))
    return Drop("opt-out", detail=f"{found[0]} in {found[1]}") if found else None


def _language(document: Document, config: SelectConfig) -> str | Drop:
    stated = language_name(document.word("language"))
    if config.trust_language and stated:
        return stated
    path = document.word("path")
    if not path:
        # Without a path the record's own word is all there is.
        extension = document.extension()
        if not extension and stated:
            return stated
        path = f"file.{extension}" if extension else "file"
    language, reason = languages.identify(path, document.text)
    return language or Drop("unknown-language", detail=reason)


def _licence(
    document: Document, config: SelectConfig, allowed: frozenset[str]
) -> str | Drop | None:
    """Give the licence that allows a file: that of its own tag, else any of its repository's."""
    tag = licences.tag_of(document.text)
    stated = [tag] if tag else licences.as_expressions(document.find("license"))
    if not stated:
        return Drop("no-license") if config.unlicensed == "drop" else None
    for expression in stated:
        if licences.is_allowed(expression, allowed):
            return expression
    where = "SPDX tag" if tag else "repository"
    return Drop("license", detail=f"{', '.join(stated)[:200]} ({where})")
