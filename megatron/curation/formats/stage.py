"""From records to the text that is trained on (StarCoder §3 and §5.1): code, issues, commits, notebooks.

What a record is is told by its keys. Beside the text stands where its sentinels are, so that what raw text spells is
none (megatron/data/preprocessing/formatted.py). Every random choice is a function of seed and document id. Knows
nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from megatron.curation.formats.commits import commit_text
from megatron.curation.formats.human_language import check_languages
from megatron.curation.formats.issues import issue_text
from megatron.curation.formats.notebooks import script_text, structured_text
from megatron.curation.formats.sentinels import Sentinel, join
from megatron.curation.run.document import NAMES, Changed, Document, Drop, Stage, Verdict
from megatron.data.permutation import keyed_word
from megatron.data.preprocessing.formatted import SENTINELS
from megatron.option_field import check_bounds, option

BUCKETS = ((0, "0"), (10, "1-10"), (100, "10-100"), (1000, "100-1000"))


@dataclass(frozen=True)
class FormatConfig:
    """How records become text."""

    kind: Literal["auto", "code", "issue", "commit", "notebook-script", "notebook-structured"] = (
        option("auto", "what the records are; auto tells by their keys")
    )
    notebooks: Literal["script", "structured"] = option("script", "of auto, for notebooks")
    prefix_rate: float = option(
        0.2, "chance of each of repository, file name and stars", minimum=0, maximum=1
    )
    issue_languages: tuple[str, ...] = option(
        (), "keep issues in these alone, as en (the paper's); of code in them nothing is said"
    )
    output_characters: int = option(1000, "of a notebook's output that are kept", minimum=0)
    all_commits: bool = option(
        False, "keep all, not a tenth of the smallest and largest, half of short subjects and data"
    )
    raw_sentinels: Literal["keep", "space"] = option(
        "keep",
        "raw text that spells one; space: gets a space behind its <, for programs that take sentinels from the text",
    )
    seed: int = option(1234, "of all random choices, with the id of the document")

    def check(self) -> None:
        """Raise ConfigError for a number out of range."""
        check_bounds(self)
        check_languages(self.issue_languages)


def format_stage(config: FormatConfig) -> Stage:
    """Give the stage that formats."""
    config.check()

    def apply(document: Document) -> Verdict:
        kind = config.kind if config.kind != "auto" else kind_of(document, config)
        draw = drawer(config.seed, document.id)
        parts = _parts_of(kind, document, config, draw)
        if isinstance(parts, Drop):
            return parts
        marked = join(parts, neutral=config.raw_sentinels == "space")
        changed = document.with_text(marked.text).with_metadata(**{SENTINELS: [*marked.places]})
        return Changed(changed, kind, len(marked.places))

    return Stage("format", apply, vars(config))


def drawer(seed: int, id: str) -> Callable[[str], float]:
    """Give the draws of a document: of each name a number in [0, 1), whenever it is asked for."""
    return lambda name: (keyed_word(seed, "format", name, id) >> 11) / (1 << 53)


def kind_of(document: Document, config: FormatConfig) -> str:
    """Tell what a record is."""
    if isinstance(document.find("events"), list):
        return "issue"
    if isinstance(document.find("old_contents"), str):
        return "commit"
    language = document.word("language").lower()
    is_named = language.startswith("jupyter") and document.text.lstrip()[:1] == "{"
    is_notebook = is_named or document.extension() == "ipynb"
    return f"notebook-{config.notebooks}" if is_notebook else "code"


def _parts_of(
    kind: str, document: Document, config: FormatConfig, draw: Callable[[str], float]
) -> list[str] | Drop:
    """Give sentinels and raw text in turn, or why there are none."""
    if kind == "issue":
        return issue_text(document, config.issue_languages)
    if kind == "commit":
        return commit_text(document, draw, sample=not config.all_commits)
    if kind == "notebook-structured":
        return structured_text(document.text, config.output_characters)
    text: str | Drop = script_text(document.text) if kind == "notebook-script" else document.text
    if isinstance(text, Drop):
        return text
    return [*code_prefix(document, draw, config.prefix_rate), text]


def code_prefix(document: Document, draw: Callable[[str], float], rate: float) -> list[str]:
    """Give repository, file name and stars, each with its own chance, and a new line if there is any of them.

    What a record does not state is left out; stars that are stated as null are none, as in The Stack.
    """
    parts: list[str] = []
    if (repo := _line(document.find("repo"))) and draw("repo") < rate:
        parts += [Sentinel("<reponame>"), repo]
    if (path := _line(document.find("path"))) and draw("path") < rate:
        parts += [Sentinel("<filename>"), path]
    if (bucket := star_bucket(document)) and draw("stars") < rate:
        parts += [Sentinel("<gh_stars>"), bucket]
    return [*parts, "\n"] if parts else []


def star_bucket(document: Document) -> str:
    """Give the range that the stars of a document lie in, "" if it says nothing of them."""
    nested = document.metadata.get("metadata")
    holders = [document.metadata, nested if isinstance(nested, dict) else {}]
    if not any(name in holder for name in NAMES["stars"] for holder in holders):
        return ""
    stars = document.find("stars")
    try:
        count = float(stars or 0)
    except (TypeError, ValueError):
        return ""
    return next((name for limit, name in BUCKETS if count <= limit), "1000+")


def _line(value: Any) -> str:
    """Give text on one line; "" for what is no text."""
    return " ".join(value.split()) if isinstance(value, str) else ""
