"""Whether a `tokenizer.json` has the shape that the rest relies on, before anything is made of it.

A file from elsewhere may hold anything: other types, ids of a billion, half of a character. Knows nothing of what
the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from megatron.errors import DataError

# Ids without a token, such as those that pad an embedding, beside as many as there are tokens.
SPARE_IDS = 1 << 16
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_definition(definition: dict[str, Any], where: object) -> None:
    """Raise DataError, naming place and value, unless vocabulary, merges, added tokens and stages are of their shape.

    Merges are pairs already; added_tokens is there.
    """
    model = definition["model"]
    vocab, added = model["vocab"], definition["added_tokens"]
    _require(isinstance(vocab, dict), where, "model.vocab", vocab, "an object of tokens and ids")
    _require(isinstance(added, list), where, "added_tokens", added, "a list")
    limit = 2 * (len(vocab) + len(added)) + SPARE_IDS
    for token, number in vocab.items():
        _require(_is_id(number, limit), where, f"id of {token!r}", number, f"below {limit}")
    for token in added:
        is_token = isinstance(token, dict) and isinstance(token.get("content"), str)
        is_token = is_token and token["content"] != "" and isinstance(token.get("special"), bool)
        _require(is_token, where, "added token", token, "an object with id, content and special")
        number = token.get("id")
        _require(
            _is_id(number, limit), where, f"id of {token['content']!r}", number, f"below {limit}"
        )
    owners = {number: token for token, number in vocab.items()}
    _require(len(owners) == len(vocab), where, "model.vocab", vocab, "of tokens with an id each")
    for token in added:
        content, number = token["content"], token["id"]
        is_own = owners.setdefault(number, content) == content
        is_own = is_own and vocab.get(content, number) == number
        _require(is_own, where, f"id of {content!r}", number, "that of no other token")
    prefix = model.get("continuing_subword_prefix")
    is_text = prefix is None or isinstance(prefix, str)
    _require(is_text, where, "continuing_subword_prefix", prefix, "null or text")
    _check_merges(model["merges"], prefix or "", where)
    unknown = model.get("unk_token")
    _require(unknown is None or isinstance(unknown, str), where, "unk_token", unknown, "a token")
    for name in STAGES:
        _check_stage(definition.get(name), where, name)
    try:
        json.dumps(definition, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair, which is no character ({error.reason}); copy it again"
        ) from None


def _check_merges(merges: Any, prefix: str, where: object) -> None:
    _require(isinstance(merges, list), where, "model.merges", merges, "a list")
    for merge in merges:
        is_pair = isinstance(merge, list) and len(merge) == 2
        is_pair = is_pair and all(isinstance(token, str) for token in merge)
        _require(is_pair, where, "merge", merge, "two tokens")
        # the package cuts the prefix off without a look
        wanted = f"a token that starts with {prefix!r}"
        _require(merge[1].startswith(prefix), where, "second token of a merge", merge[1], wanted)


def _check_stage(stage: Any, where: object, name: str) -> None:
    is_stage = stage is None or (isinstance(stage, dict) and isinstance(stage.get("type"), str))
    _require(is_stage, where, name, stage, "null or an object with a type")
    parts: Any = [] if stage is None else stage.get("pretokenizers", [])
    _require(isinstance(parts, list), where, name, stage, "made of a list of stages")
    for part in parts:
        is_stage = isinstance(part, dict) and isinstance(part.get("type"), str)
        _require(is_stage, where, name, part, "made of objects with a type")


def _is_id(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _require(condition: bool, where: object, name: str, value: Any, wanted: str) -> None:
    if not condition:
        shown = repr(value) if isinstance(value, (int, float, str, type(None))) else _outline(value)
        raise DataError(
            f"{where} is damaged: its {name} is {shown[:80]}, and has to be {wanted}; copy it again"
        )


def _outline(value: Sequence[Any] | dict[Any, Any]) -> str:
    """Name a list or an object without writing it out, which may be long and deep."""
    return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
