"""Commits as text: what stood there, the message, what stands there (StarCoder §3, commits).

Knows nothing of repositories: a record has `old_contents`, `subject`, and the new contents as its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron.curation.formats.sentinels import Sentinel
from megatron.curation.run.document import Document, Drop

MAX_CHARACTERS = 100_000
FEW_LINES, MANY_LINES, RARE = 2, 200, 0.1
FULL_RATE, MAX_CONTEXT = 0.2, 32
FEW_WORDS, SHORT_RATE, MAX_WORD = 5, 0.5, 20
DATA_EXTENSIONS, DATA_RATE = frozenset({"json", "yml", "xml", "html", "yaml"}), 0.5
AUTOMATIC = ("auto commit", "update contributing", "<?xml")
MEANINGLESS = frozenset(
    {"readme", "update", "dummy", "updated", "debug", "test"}
    | {"update readme", "update readme.md", "updated readme", "updated readme.md"}
)
VERSION = re.compile(r"(?:bump(?:ed)? (?:to )?|version |release )?v?\d+\.\d+\.\d+\S*")


def commit_text(
    document: Document, draw: Callable[[str], float], *, sample: bool
) -> list[str] | Drop:
    """Give a commit as sentinels and text, or why it is left out; draw: this document's random numbers by name."""
    old, new = document.word("old_contents"), document.text
    subject = (
        document.word("subject").strip() or document.word("message").strip().partition("\n")[0]
    )
    if reason := _bad_subject(subject):
        return Drop(reason, detail=subject[:200])
    if len(old) > MAX_CHARACTERS or not new.strip():
        return Drop("commit-size", len(old))
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    first, old_end, new_end = changed_lines(before, after)
    span = max(old_end, new_end) - first
    if span == 0:
        return Drop("commit-unchanged")
    if sample and (reason := _left_out(document, subject, span, draw)):
        return Drop(reason, span)
    if draw("full") >= FULL_RATE:
        above = max(first - int(draw("above") * MAX_CONTEXT), 0)
        below = int(draw("below") * MAX_CONTEXT)
        before, after = before[above : old_end + below], after[above : new_end + below]
    return [
        *(Sentinel("<commit_before>"), "".join(before)),
        *(Sentinel("<commit_msg>"), subject),
        *(Sentinel("<commit_after>"), "".join(after)),
    ]


def changed_lines(before: list[str], after: list[str]) -> tuple[int, int, int]:
    """Give the first line that differs, and behind the last, in the old file and the new one."""
    shorter = min(len(before), len(after))
    first = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    same = 0
    while same < shorter - first and before[-1 - same] == after[-1 - same]:
        same += 1
    return first, len(before) - same, len(after) - same


def _bad_subject(subject: str) -> str:
    lowered = subject.lower()
    if not subject or lowered in MEANINGLESS or any(word in lowered for word in AUTOMATIC):
        return "commit-subject"
    if VERSION.fullmatch(lowered):
        return "commit-version"
    return "commit-subject" if len(subject) / len(subject.split()) > MAX_WORD else ""


def _left_out(document: Document, subject: str, span: int, draw: Callable[[str], float]) -> str:
    """Give the rule by which a commit is one of those of which only some are kept, and is none of them."""
    if (span <= FEW_LINES or span >= MANY_LINES) and draw("span") >= RARE:
        return "commit-span-sampled"
    if len(subject.split()) < FEW_WORDS and draw("subject") >= SHORT_RATE:
        return "commit-subject-sampled"
    if document.extension() in DATA_EXTENSIONS and draw("data") >= DATA_RATE:
        return "commit-data-sampled"
    return ""
