"""A small tokenizer of StarCoder's kind, trained on this Python's own library, and token files made with it."""

import sysconfig
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megatron.options import TokenizerConfig
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer

FILES = ("ast.py", "argparse.py", "difflib.py", "inspect.py", "json/decoder.py", "textwrap.py")


@pytest.fixture(scope="session")
def source_texts() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    return [(folder / name).read_text(encoding="utf-8") for name in FILES]


@pytest.fixture(scope="session")
def tokenizer_file(source_texts, tmp_path_factory) -> Path:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=list(STARCODER_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([text[:40_000] for text in source_texts], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(tokenizer_file)))
