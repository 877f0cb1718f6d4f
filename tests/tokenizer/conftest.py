"""A small tokenizer trained on this machine's Python library, and text that is hard to encode."""

import inspect
import json
import json.decoder
import random
import tokenize
from pathlib import Path

import pytest

from megatron.tokenizer.train import train_tokenizer

CODE = inspect.getsource(tokenize) + inspect.getsource(json.decoder) + "year = 2023\n" * 300


@pytest.fixture(scope="session")
def definition() -> dict:
    """The content of a tokenizer.json of 600 ids; copy before changing it."""
    return train_tokenizer([CODE], 600)


@pytest.fixture
def tokenizer_file(definition: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    return path


def hard_texts(count: int = 300) -> list[str]:
    """Unicode of all planes, whitespace runs, line ends, controls, digits, code, the empty text; seeded."""
    rng = random.Random(0)
    pieces = [
        lambda: chr(rng.choice([*range(0xD800), *range(0xE000, 0x110000, 97)])),
        lambda: rng.choice(
            ["\r\n", "\n\n", "\t", " " * rng.randint(1, 9), "\0", "\u0085", "\u2028"]
        ),
        lambda: str(rng.randint(0, 10**6)),
        lambda: rng.choice(
            ["don't", "'ll", "e\u0301", "\U0001f468\u200d\U0001f469", "\ufb01", "x" * 40]
        ),
        lambda: CODE[(start := rng.randrange(len(CODE))) : start + rng.randint(1, 60)],
    ]
    texts = ["".join(rng.choice(pieces)() for _ in range(rng.randint(1, 12))) for _ in range(count)]
    return ["", *texts, CODE]
