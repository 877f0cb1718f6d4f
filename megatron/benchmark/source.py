"""Text to measure with: that of JSON-lines files, or the Python source of this machine."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from megatron.data.preprocessing.document_reader import check_inputs
from megatron.errors import DataError
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS


def python_source() -> Iterator[str]:
    """Give the Python files of this interpreter and its packages, shuffled."""
    roots = {sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")}
    files = sorted({file for root in roots for file in Path(root).rglob("*.py")})
    Random(0).shuffle(files)
    for file in files:
        try:
            yield file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def read_texts(paths: list[Path], key: str) -> Iterator[str]:
    """Give the texts of JSON-lines files."""
    check_inputs(paths)
    for path in paths:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)[key]
                except (ValueError, KeyError, TypeError):
                    raise DataError(f"{path}:{number} holds no text under {key!r}") from None


def shorten(texts: Iterable[str], megabytes: float) -> list[str]:
    """Keep the first texts, up to a number of megabytes, without those that spell a sentinel.

    Other encoders make the sentinel's id of it, which would hide whether ids are otherwise equal.
    """
    kept: list[str] = []
    left = megabytes * 1e6
    for document in texts:
        if not document or any(token in document for token in STARCODER_SPECIAL_TOKENS):
            continue
        left -= len(document.encode())
        if left < 0 and kept:
            break
        kept.append(document)
    if not kept:
        raise DataError("there is no text to measure with; give --input")
    return kept
