"""What tools/generate.py is asked to write: prompts from flags, files and JSON lines, fitted into a model's positions.

Knows nothing of torch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.errors import ConfigError, DataError
from megatron.inference.options import SamplingOptions, is_unicode
from megatron.inference.prompt import Order, encode_text, infilling_ends, infilling_ids
from megatron.inference.request import LESS, Request, too_long
from megatron.tokenizer.chat_template import ChatEncoder, Message, read_messages, why_unusable
from megatron.tokenizer.interface import Tokenizer


@dataclass(frozen=True)
class Job:
    """One prompt: a text to continue, with a suffix one to fill in, or messages to answer."""

    name: Any  # a JSON value, given back with the result
    where: str  # for messages
    prefix: str
    suffix: str | None
    options: SamplingOptions
    num_samples: int
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Fitting:
    """How prompts become requests."""

    order: Order
    reads_sentinels: bool
    truncates: bool  # prompts that are too long, rather than refuse them
    shortens: bool  # max_new_tokens where there is not so much room: nobody asked for a number
    chat: ChatEncoder | None = None  # for messages


def read_text(flag: str, path: Path) -> str:
    """Read a file of UTF-8, or stdin for `-`. Raises DataError where that cannot be."""
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{flag} {path} is not UTF-8: {error.reason} at byte {error.start}"
        ) from None


def split_at_cursor(text: str, mark: str, where: str) -> tuple[str, str]:
    """Cut a text in two at its one mark. Raises ConfigError where there is not one."""
    if text.count(mark) != 1:
        raise ConfigError(
            f"{where} holds {text.count(mark)} times the cursor {mark!r}; write it once, where text is wanted "
            f"(--cursor chooses another mark)"
        )
    prefix, _, suffix = text.partition(mark)
    return prefix, suffix


def read_jobs(path: Path, defaults: SamplingOptions, num_samples: int) -> Iterator[Job]:
    """Read JSON lines: prompt, messages, or prefix and suffix, and if need be id, n and options, an object.

    Raises DataError or ConfigError, which name the line.
    """
    for number, line in enumerate(read_text("--input", path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"--input {path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {type(row).__name__}; write an object on each line")
        messages = _messages(row, where)
        is_infilling = "prompt" not in row and messages is None
        texts = [
            row.get(key, "") for key in (("prefix", "suffix") if is_infilling else ("prompt",))
        ]
        if is_infilling and not {"prefix", "suffix"} & set(row):
            raise DataError(f"{where} has neither prompt nor messages nor prefix and suffix")
        options, count = row.get("options", {}), row.get("n", num_samples)
        if not all(isinstance(text, str) for text in texts) or not isinstance(options, dict):
            raise DataError(f"{where}: prompt, prefix and suffix are texts, and options an object")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise DataError(f"{where}: n is {count!r}; allowed: 1 or more")
        yield Job(
            row.get("id", number),
            where,
            texts[0],
            texts[1] if is_infilling else None,
            defaults.changed(options, where) if options else defaults,
            count,
            messages,
        )


def _messages(row: dict[str, Any], where: str) -> tuple[Message, ...] | None:
    """Give the messages of a line, None if it has none. Raises DataError for what is no conversation."""
    if "messages" not in row:
        return None
    reason = why_unusable(row["messages"], learns=False)
    if reason is not None or "prompt" in row:
        raise DataError(f"{where}: messages are {reason or 'given, and prompt too'}")
    return tuple(read_messages(row["messages"]))


def make_request(
    job: Job, name: str, tokenizer: Tokenizer, num_positions: int, fitting: Fitting
) -> Request:
    """Make a job's request. Raises ConfigError, which says where, for a prompt that does not fit."""
    options = job.options
    room = num_positions - options.max_new_tokens
    try:
        if not is_unicode(job.prefix + (job.suffix or "")):
            raise ConfigError("the prompt is not Unicode text; give UTF-8")
        if room < 1 and not fitting.shortens:
            advice = f"give {num_positions - 1} at most"
            raise ConfigError(
                too_long(num_positions, "one or more", options.max_new_tokens, advice=advice)
            )
        if fitting.shortens:
            room = max(room, num_positions // 2)
        limit = room if fitting.truncates else None
        if job.suffix is not None:
            ids = infilling_ids(tokenizer, job.prefix, job.suffix, fitting.order, limit)
            ends = infilling_ends(tokenizer)
        elif job.messages is not None:
            assert fitting.chat is not None
            ids, ends = fitting.chat.prompt(job.messages), frozenset([fitting.chat.end])
        else:
            ids = encode_text(tokenizer, job.prefix, reads_sentinels=fitting.reads_sentinels)
            ids = ids[-limit:] if limit is not None else ids
            ends = frozenset()
            if not ids:
                ids = [tokenizer.eod]  # a text from its beginning: after the end of another
        left = num_positions - len(ids)
        needed = 1 if fitting.shortens else options.max_new_tokens
        if left < needed:
            option = "what is written at least" if fitting.shortens else "--max-new-tokens"
            advice = f"{LESS}, or give --truncate"
            raise ConfigError(too_long(num_positions, len(ids), needed, option, advice))
    except ConfigError as error:
        raise ConfigError(f"{job.where}: {error}") from None
    if left < options.max_new_tokens:
        options = dataclasses.replace(options, max_new_tokens=left)
    return Request(name, tuple(ids), options, job.num_samples, ends)
