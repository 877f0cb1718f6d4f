"""Issues and pull requests as conversations (StarCoder §3, issues): bots out, e-mail noise out, names replaced.

A record has `events`, objects of `type` or `action`, `author`, `text` or `body`, and for the first one `title`; these
are the keys of The Stack's issues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.curation.formats.human_language import language_of
from megatron.curation.formats.sentinels import Sentinel
from megatron.curation.run.document import Document, Drop

MIN_CHARACTERS, MAX_CHARACTERS, MAX_EVENTS = 200, 7000, 10  # the last two where one person speaks
MAX_LINES, FIRST_LINES, LAST_LINES = 80, 60, 20
BOT = re.compile(
    r"\[bot\]|botmanager|bors-|jenkins|k8s-|-test-|travis|(?:-bot|_bot|\bbot|robot|-ci|_ci|-build|-builder)$|"
    r"^(?:codecov|coveralls|dependabot|renovate|greenkeeper|googlebot|stale|netlify|vercel|snyk|mergify)(?:-.*)?$",
    re.I,
)
MAIL = (
    re.compile(r"(?:^|\n)(?:—|--|-)?\s{0,100}(?:You are receiving this|Reply to this email directly)[\s\S]*$", re.I),
    re.compile(r"(?:^|\n)On [^\n]{0,200}\n?[^\n]{0,200}\b(?:wrote|notifications@github\.com)[^\n]*:?[ \t]*(?=\n|$)", re.I),
    re.compile(r"^(?:Signed-off-by|Reviewed-by|Acked-by): .*$", re.M),
    re.compile(r"^_{20,}\s*$", re.M),
    re.compile(r"^>.*\n?", re.M),
)  # fmt: skip


@dataclass(frozen=True)
class _Event:
    author: str
    text: str
    title: str
    is_closing: bool


def issue_text(document: Document, languages: Sequence[str] = ()) -> list[str] | Drop:
    """Give an issue as sentinels and text, or why it is left out; languages: those wanted, if not all."""
    found = document.find("events")
    listed = found if isinstance(found, list) else []
    events = [_event(item) for item in listed if isinstance(item, dict)]
    title = next((event.title for event in events if event.title), document.word("title"))
    spoken = [event for event in _without_bots(events) if event.text]
    size = sum(len(event.text) for event in spoken)
    if size < MIN_CHARACTERS:
        return Drop("issue-short", size)
    authors = list(dict.fromkeys(event.author for event in spoken if event.author))
    if len(authors) < 2 and (size > MAX_CHARACTERS or len(events) > MAX_EVENTS):
        return Drop("issue-monologue", size)
    if languages:
        language = language_of("\n".join([title, *(event.text for event in spoken)]))
        if language and language not in languages:
            return Drop("issue-language", detail=language)
    names = {author: f"username_{number}" for number, author in enumerate(authors)}
    parts: list[str] = []
    for number, event in enumerate(spoken):
        head = f"Title: {_renamed(title, names)}\n" if number == 0 and title else ""
        name = names.get(event.author, "username")
        parts.append(Sentinel("<issue_comment>" if parts else "<issue_start>"))
        parts.append(f"{head}{name}: {_renamed(event.text, names)}")
    if any(event.is_closing for event in events):
        parts.append(Sentinel("<issue_closed>"))
    return parts


def _event(item: dict[str, Any]) -> _Event:
    def word(*keys: str) -> str:
        return next(
            (value for key in keys if isinstance(value := item.get(key), str) and value), ""
        )

    author = word("author", "user", "login")
    action = word("action", "state")
    text = cut_middle(without_mail(word("text", "body")))
    return _Event(author, text, word("title").strip(), action == "closed")


def _without_bots(events: Sequence[_Event]) -> list[_Event]:
    """Leave out what bots say, and the line by which somebody called one just before."""
    kept: list[_Event] = []
    for event in events:
        if not BOT.search(event.author):
            kept.append(event)
        elif len(kept) > 1 and kept[-1].text[:1] in "@/" and "\n" not in kept[-1].text:
            kept.pop()
    return kept


def without_mail(text: str) -> str:
    """Leave out what mail programs add: quotations, signatures, how to reply."""
    text = text.replace("\r\n", "\n")
    for pattern in MAIL:
        text = pattern.sub("", text)
    return text.strip()


def cut_middle(text: str) -> str:
    """Leave out the middle of a comment of more than 80 lines."""
    lines = text.split("\n")
    if len(lines) <= MAX_LINES:
        return text
    return "\n".join([*lines[:FIRST_LINES], "[Truncated]", *lines[-LAST_LINES:]])


def _renamed(text: str, names: dict[str, str]) -> str:
    """Replace the names of those who speak, as whole words, so that an author `a` changes no other word."""
    if not names:
        return text
    ordered = sorted(names, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, ordered))})(?![\w-])")

    def other(match: re.Match[str]) -> str:
        # Short ones are words of the language too, and count only when spoken to.
        is_meant = len(match[0]) > 2 or text[match.start() - 1 : match.start()] == "@"
        return names[match[0]] if is_meant else match[0]

    return pattern.sub(other, text)
