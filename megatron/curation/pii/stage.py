"""Replace personal data (StarCoder §4): the same value by the same replacement, and a file that parsed still parses.

E-mail, names, keys and passwords become `<EMAIL>`, `<NAME>`, `<KEY>`, `<PASSWORD>`, IP addresses private ones of their
kind. What stands where a replacement belongs is no personal data, so redacting twice is redacting once: what a model
finds in a text that was redacted is redacted too, until it finds nothing. Knows nothing of the rules.
"""

from __future__ import annotations

import ast
import ipaddress
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron.curation.pii.model import ModelFinder, check_folder, fingerprint
from megatron.curation.pii.rules import find_all
from megatron.curation.pii.scan import Found
from megatron.curation.run.document import Changed, Document, Keep, Stage, Verdict
from megatron.data.permutation import keyed_word
from megatron.option_field import check_bounds, option, require

KINDS = ("EMAIL", "IP_ADDRESS", "KEY", "PASSWORD")  # that rules find
MODEL_KINDS = (*KINDS, "NAME", "USERNAME")
WITHOUT_ASKING = (*KINDS, "NAME")  # StarCoder §4: user names are found and left
WORDS = ("NAME", "USERNAME")  # may be part of an identifier, where `<NAME>` would break a file
LONG_PASSWORD = 8
# Addresses of the networks that replacements are of: a text's own are not given again.
PRIVATE_IPV4, PRIVATE_IPV6 = (
    re.compile(r"10(?:\.\d{1,3}){3}"),
    re.compile(r"fd[0-9a-f]{2}:[0-9a-f:]+"),
)
MAX_ROUNDS = 8  # of a model over a text that changes by what it finds

Find = Callable[[Sequence[str]], list[list[Found]]]
Given = dict[tuple[str, str], str]  # kind and value: their replacement


@dataclass(frozen=True)
class PiiConfig:
    """What is replaced, by what, and who finds it."""

    kinds: tuple[str, ...] = option(
        (),
        "of these: EMAIL IP_ADDRESS KEY PASSWORD, and with --model NAME USERNAME (default: all but USERNAME)",
        metavar="KIND",
    )
    distinct: bool = option(
        False, "number the placeholders of different values, as <EMAIL>, <EMAIL_2>"
    )
    model: str | None = option(
        None,
        "local folder of a Hugging Face classifier of tokens, as StarPII or of `curate.py pii-train`: finds what rules "
        "cannot tell",
        metavar="DIR",
    )
    min_confidence: float = option(
        0.5, "the model's probability from which a word counts", above=0, maximum=1
    )
    window: int = option(512, "tokens that the model reads at once", minimum=16)
    overlap: int = option(128, "tokens that two windows share", minimum=0)
    batch_size: int = option(16, "windows in a batch", minimum=1)
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "where the model runs: workers share the GPUs, on a CPU each takes a core"
    )
    bf16: bool = option(False, "the model's products in bf16")

    def check(self) -> None:
        """Raise ConfigError for a kind that is none, DataError for a folder without a model."""
        check_bounds(self)
        unknown = [kind for kind in self.kinds if kind not in MODEL_KINDS]
        require(not unknown, f"--kinds {' '.join(unknown)}: allowed are {' '.join(MODEL_KINDS)}")
        alone = [kind for kind in self.kinds if kind not in KINDS]
        require(
            not alone or self.model is not None,
            f"--kinds {' '.join(alone)}: no rule tells them; name a model's folder by --model",
        )
        require(
            self.overlap * 2 <= self.window,
            f"--overlap {self.overlap} is more than half of --window {self.window}",
        )
        if self.model is not None:
            check_folder(Path(self.model))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Give the kinds that are replaced."""
        return self.kinds or WITHOUT_ASKING

    def settings(self) -> dict[str, Any]:
        """Give what the answers depend on; batch and device change them by no more than rounding does."""
        found: dict[str, Any] = {"kinds": self.wanted, "distinct": self.distinct}
        if self.model is not None:
            found |= {"model": self.model, "hash": fingerprint(Path(self.model)), "bf16": self.bf16}
            found |= {name: vars(self)[name] for name in ("min_confidence", "window", "overlap")}
        return found


def pii_stage(config: PiiConfig) -> Stage:
    """Give the stage that redacts."""
    config.check()
    if config.model is None:

        def apply(document: Document) -> Verdict:
            return _redacted([document], lambda texts: [*map(find_all, texts)], config, 1)[0]

        return Stage("pii", apply, config.settings())
    finder = ModelFinder(
        Path(config.model),
        config.min_confidence,
        device=config.device,
        window=config.window,
        overlap=config.overlap,
        batch_size=config.batch_size,
        bf16=config.bf16,
    )

    def find(texts: Sequence[str]) -> list[list[Found]]:
        answers = zip(texts, map(find_all, texts), finder.find(texts), strict=True)
        return [
            joined(by_rules, everywhere(text, by_model)) for text, by_rules, by_model in answers
        ]

    def apply_to_all(documents: Sequence[Document]) -> list[Verdict]:
        return _redacted(documents, find, config, MAX_ROUNDS)

    return Stage(
        "pii", lambda document: apply_to_all([document])[0], config.settings(), apply_to_all
    )


def joined(by_rules: Sequence[Found], by_model: Sequence[Found]) -> list[Found]:
    """Give what either finds; where both do, what the rules say."""
    added = [
        item
        for item in by_model
        if not any(item.begin < rule.end and rule.begin < item.end for rule in by_rules)
    ]
    return sorted([*by_rules, *added])


def everywhere(text: str, found: Sequence[Found]) -> list[Found]:
    """Add the places where a value stands that a model found elsewhere in the text; none over another.

    User names and short passwords may be words of the code, and count only where they were found.
    """
    added = list(found)
    taken = {place for item in found for place in range(item.begin, item.end)}
    for value, kind in sorted({(text[item.begin : item.end], item.kind) for item in found}):
        if kind == "USERNAME" or (kind == "PASSWORD" and len(value) < LONG_PASSWORD):
            continue
        begin = text.find(value)
        while begin >= 0:
            item = Found(begin, begin + len(value), kind, "model")
            if taken.isdisjoint(range(*item[:2])) and not _is_in_word(text, item):
                added.append(item)
                taken.update(range(*item[:2]))
            begin = text.find(value, item.end)
    return sorted(added)


@dataclass
class _Work:
    """A document as far as it is redacted."""

    document: Document
    text: str
    given: Given = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def verdict(self) -> Verdict:
        if not self.counts:
            return Keep(self.document)
        detail = ", ".join(f"{rule} {count}" for rule, count in sorted(self.counts.items()))
        return Changed(self.document.with_text(self.text), "redacted", self.counts.total(), detail)


def _redacted(
    documents: Sequence[Document], find: Find, config: PiiConfig, num_rounds: int
) -> list[Verdict]:
    """Redact until nothing is found any more, but at most so many times."""
    works = [_Work(document, document.text) for document in documents]
    open_works = works
    for _ in range(num_rounds):
        if not open_works:
            break
        changed = []
        for work, found in zip(open_works, find([work.text for work in open_works]), strict=True):
            wanted = [item for item in found if item.kind in config.wanted]
            if not wanted:
                continue
            language = work.document.word("language").lower()
            work.text, replaced = redact(work.text, wanted, config, language, work.given)
            names = (item.kind.lower() if item.rule == "model" else item.rule for item in replaced)
            work.counts.update(names)
            if replaced:
                changed.append(work)
        open_works = changed
    return [work.verdict() for work in works]


def redact(
    text: str,
    found: Sequence[Found],
    config: PiiConfig,
    language: str = "",
    given: Given | None = None,
) -> tuple[str, list[Found]]:
    """Replace all that was found; give the text and what was replaced.

    given: the replacements of before, to which those of now are added. Where a file of Python or JSON would no longer
    parse, names become words without brackets, and what then stands in the way is left: it was code.
    """
    given = {} if given is None else given
    bare = {item for item in found if item.kind in WORDS and _is_in_word(text, item)}
    tried = dict(given)
    replaced = _replace(text, found, config, tried, bare)
    kept = list(found)
    if _parses(text, language) and not _parses(replaced, language):

        def fits(items: Sequence[Found], words: set[Found]) -> bool:
            return _parses(_replace(text, items, config, dict(given), words), language)

        kept, bare = _fitting(found, bare, fits)
        tried = dict(given)
        replaced = _replace(text, kept, config, tried, bare)
        if not _parses(replaced, language):
            return text, []
    given.update(tried)
    return replaced, kept


def _fitting(
    items: Sequence[Found], bare: set[Found], fits: Callable[[Sequence[Found], set[Found]], bool]
) -> tuple[list[Found], set[Found]]:
    """Leave out what stands in the way, looked for by halves: each try parses the file, and few of thousands do.

    bare: what is replaced by words without brackets; given with what must be, too.
    """
    if fits(items, bare):
        return list(items), bare
    if len(items) > 1:
        half = len(items) // 2
        first, bare = _fitting(items[:half], bare, fits)
        last, bare = _fitting(items[half:], bare, fits)
        return [*first, *last], bare
    more = bare.union(items)
    if items[0].kind in WORDS and fits(items, more):
        return list(items), more
    return [], bare


def _is_in_word(text: str, item: Found) -> bool:
    sides = text[item.begin - 1 : item.begin] if item.begin else "", text[item.end : item.end + 1]
    return any(side == "_" or side.isalnum() for side in sides)


def _replace(
    text: str,
    found: Sequence[Found],
    config: PiiConfig,
    given: Given,
    bare: Collection[Found],
) -> str:
    parts, last = [], 0
    taken = set(given.values())
    if any(item.kind == "IP_ADDRESS" for item in found):
        taken.update(PRIVATE_IPV4.findall(text), PRIVATE_IPV6.findall(text))
    for item in found:
        value = text[item.begin : item.end]
        key = (item.kind, value)
        if key not in given:
            given[key] = _replacement(text, item, value, taken, config)
            taken.add(given[key])
        parts += [text[last : item.begin], given[key].strip("<>") if item in bare else given[key]]
        last = item.end
    return "".join([*parts, text[last:]])


def _replacement(text: str, item: Found, value: str, taken: set[str], config: PiiConfig) -> str:
    if item.kind == "IP_ADDRESS":
        return _private_address(value, taken)
    number = 2
    placeholder = f"<{item.kind}>"
    while config.distinct and (placeholder in taken or placeholder in text):
        placeholder = f"<{item.kind}_{number}>"
        number += 1
    return placeholder


def _private_address(value: str, taken: set[str]) -> str:
    """Give a private address of the same version that is not taken; a function of the value."""
    attempt = 0
    while True:
        word = keyed_word("pii", value, attempt)
        if ":" in value:
            address = str(ipaddress.IPv6Address((0xFD << 120) | word << 40 | (word & 0xFFFF) | 1))
        else:
            address = f"10.{word >> 16 & 255}.{word >> 8 & 255}.{word & 255}"
        if address not in taken:
            return address
        attempt += 1


def _parses(text: str, language: str) -> bool:
    """Tell whether a text is whole Python or JSON; False for other languages, where nothing can be said."""
    try:
        if language == "python":
            with warnings.catch_warnings():  # odd escapes in somebody's code are no news
                warnings.simplefilter("ignore")
                ast.parse(text)
        elif language in ("json", "jupyter"):
            json.loads(text)
        else:
            return False
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
