"""The tokenizer of a run as files that transformers' AutoTokenizer reads.

In training no text ever becomes a sentinel; in the export the sentinels are special tokens, so that prompts may
spell them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megatron.tokenizer import chat_template
from megatron.tokenizer.chat_template import ChatTemplate
from megatron.tokenizer.interface import Tokenizer


def write_tokenizer(
    tokenizer: Tokenizer,
    source: Path,
    folder: Path,
    max_length: int,
    template: ChatTemplate | None = None,
) -> None:
    """Write the files of a tokenizer that was kept in `source` into `folder`, with the template of a model's conversations.

    A tokenizer without tokenizer.json is copied as it is: AutoTokenizer needs more than this to read it.
    """
    if not (source / "tokenizer.json").is_file():
        for file in source.iterdir() if source.is_dir() else ():
            shutil.copyfile(file, folder / file.name)
        return
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    for token in definition["added_tokens"]:
        token["special"] = token["special"] or token["content"] in tokenizer.special_tokens
    contents = {
        "tokenizer.json": definition,
        "tokenizer_config.json": _tokenizer_config(tokenizer, source, definition, max_length),
        "special_tokens_map.json": _special_tokens(tokenizer),
    }
    if template is not None:
        contents["tokenizer_config.json"]["chat_template"] = template.jinja()
        contents[chat_template.FILE] = template.to_json()  # for our own tools
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Name each special token once: the one that ends documents has all of StarCoder's roles for it."""
    eod = tokenizer.eod_token
    others = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    return {
        "additional_special_tokens": [name for name, _ in others if name != eod],
        "bos_token": eod,
        "eos_token": eod,
        "unk_token": eod,
    }


def _tokenizer_config(
    tokenizer: Tokenizer, source: Path, definition: dict[str, Any], max_length: int
) -> dict[str, Any]:
    """Give tokenizer_config.json; what a Hugging Face tokenizer brought along stays, decoding is made exact."""
    kept = source / "tokenizer_config.json"
    brought = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    own = {
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in token if key != "id"}
            for token in definition["added_tokens"]
        },
        "add_prefix_space": False,
        # A class of its own would rebuild the pre-tokenizer and lose the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens(tokenizer),
    }
    return {
        **own,
        **brought,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
