"""What decided the bytes of a dataset: `PREFIX.origin.json`, one object, compared when shards are merged.

Knows nothing of text; nothing here is needed to read a dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from megatron.data.shards import split_name
from megatron.errors import DataError

Origin = dict[str, Any]  # the name of what decides, and its value
CONVERSATIONS = "chat_template"  # of a dataset of conversations: how they were written


def origin_path(prefix: str | Path) -> Path:
    """Give the path of the side file."""
    return Path(f"{prefix}.origin.json")


def format_origin(origin: Origin) -> bytes:
    """Give the content of the side file: a line for each value."""
    return orjson.dumps(origin, option=orjson.OPT_INDENT_2) + b"\n"


def read_origin(prefix: str | Path) -> Origin | None:
    """Read the side file; None if the dataset was written without, as other programs do."""
    path = origin_path(prefix)
    if not path.exists():
        return None
    try:
        origin = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; copy it again") from error
    if not isinstance(origin, dict):
        raise DataError(f"{path} holds no JSON object; copy it again")
    return origin


def other_tokenizer(prefix: str | Path, fingerprint: str) -> str | None:
    """Name the tokenizer that a dataset says its ids are of by its fingerprint in short; None if it is this one.

    It may differ in sentinels alone, which takes nothing from the ids of text.
    """
    found = (read_origin(prefix) or {}).get("tokenizer", fingerprint)
    return None if found == fingerprint else f"{str(found)[:12]}…"


def join_origins(prefixes: Sequence[Path]) -> Origin | None:
    """Give the origin of datasets joined in this order: that of the whole for the shards of one run.

    Of others only the tokenizer is kept, and how conversations were written. Raises DataError for shards of different
    runs, for ids of different tokenizers, where that is recorded, and for conversations beside what is none.
    """
    origins = [read_origin(prefix) for prefix in prefixes]
    first: dict[str, int] = {}  # shard of each whole
    for i, prefix in enumerate(prefixes):
        whole = _whole_name(prefix)
        if whole is not None:
            other = first.setdefault(whole, i)
            _compare(prefixes[other], origins[other], prefix, origins[i])
    tokenizers = [
        (prefix, {"tokenizer": origin["tokenizer"]})
        for prefix, origin in zip(prefixes, origins, strict=True)
        if origin is not None and "tokenizer" in origin
    ]
    for prefix, origin in tokenizers:
        _compare(*tokenizers[0], prefix, origin)
    kept = _joined_conversations(prefixes, origins)
    wholes = {_whole_name(prefix) for prefix in prefixes}
    if origins[0] is not None and len(wholes) == 1 and None not in wholes:
        return origins[0] | {"shard": None}
    return kept | (tokenizers[0][1] if len(tokenizers) == len(prefixes) else {}) or None


def _joined_conversations(prefixes: Sequence[Path], origins: Sequence[Origin | None]) -> Origin:
    """Give what all say of conversations, nothing if they hold none; DataError where they differ."""
    said = [{} if origin is None else origin for origin in origins]
    first = said[0].get(CONVERSATIONS)
    for prefix, origin in zip(prefixes, said, strict=True):
        if origin.get(CONVERSATIONS) != first:
            raise DataError(
                f"{prefixes[0]} holds {_kind(first)} and {prefix} {_kind(origin.get(CONVERSATIONS))}: merge each kind by "
                "itself; a run reads several datasets (--train-data-path)"
            )
    return {} if first is None else {CONVERSATIONS: first}


def _kind(template: object) -> str:
    return "plain documents" if template is None else f"conversations written as {template}"


def _whole_name(prefix: Path) -> str | None:
    split = split_name(prefix)
    return split[0].name if split is not None else None


def _compare(first: Path, expected: Origin | None, second: Path, found: Origin | None) -> None:
    """Raise DataError at the first value that differs, but for the number of the shard."""
    if expected is None or found is None:
        if expected is not found:
            missing, other = (first, second) if expected is None else (second, first)
            raise DataError(
                f"{missing} has no {origin_path(missing).name}, {other} has one: they come from different runs; copy "
                "it too, or make both again with the same flags"
            )
        return
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name != "shard" and expected.get(name) != found.get(name):
            raise DataError(
                f"{first} and {second} come from different runs: {name} is {expected.get(name)} and "
                f"{found.get(name)}; make them again with the same tokenizer, input and flags"
            )
