"""From the tokenizer flags to a `Tokenizer`: which files each --tokenizer-type reads and which id ends a document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.definition_check import check_definition
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.json_tokenizer import (
    Json,
    JsonTokenizer,
    add_special_tokens,
    byte_pair_definition,
    read_definition,
    read_json,
)
from megatron.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron.tokenizer.special_tokens import EOD, FIM_TOKENS


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Build the tokenizer of the flags; raise ConfigError for a missing flag, DataError for a bad file."""
    name = config.tokenizer_type
    if name in ("TokenizerFromFile", "TokenizerFromFileWithFIM"):
        path = _required(name, "--tokenizer-file", config.tokenizer_file)
        return _from_file(name, path, with_fim=name.endswith("WithFIM"))
    if name == "HuggingFaceTokenizer":
        return _from_folder(name, _required(name, "--tokenizer-model", config.tokenizer_model))
    if name in ("GPT2BPETokenizer", "GPT2BPETokenizerWithFIM"):
        vocab = _required(name, "--vocab-file", config.vocab_file)
        merges = _required(name, "--merge-file", config.merge_file)
        return _from_vocab_and_merges(name, vocab, merges, with_fim=name.endswith("WithFIM"))
    if name == "SentencePieceTokenizer":
        path = _required(name, "--tokenizer-model", config.tokenizer_model)
        return SentencePieceTokenizer(name, path)
    assert name == "NullTokenizer"
    if config.vocab_size is None or config.vocab_size < 1:
        raise ConfigError(f"--tokenizer-type {name} needs --vocab-size, the number of ids")
    return NullTokenizer(config.vocab_size)


class NullTokenizer(Tokenizer):
    """Text that is numbers already, separated by spaces. As in Megatron, one id more than asked for is the EOD."""

    def __init__(self, vocab_size: int) -> None:
        self.name = "NullTokenizer"
        self.vocab_size = vocab_size + 1
        self.eod = vocab_size
        self.special_tokens = {EOD: self.eod}

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._numbers(text) for text in texts]

    def detokenize(self, ids: Sequence[int]) -> str:
        return " ".join(EOD if number == self.eod else str(number) for number in ids)

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == self.eod else str(token).encode()

    def files(self) -> dict[str, bytes]:
        return {}

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.name} {self.vocab_size}".encode()).hexdigest()

    def _numbers(self, text: str) -> list[int]:
        try:
            numbers = [int(word) for word in text.split()]
        except ValueError as error:
            raise DataError(f"NullTokenizer reads numbers and spaces only: {error}") from None
        for number in numbers:
            if not 0 <= number < self.eod:
                raise DataError(
                    f"NullTokenizer was given {number}; its ids are 0 to {self.eod - 1}"
                )
        return numbers


def _required(name: str, flag: str, value: str | None) -> Path:
    if value is None:
        raise ConfigError(f"--tokenizer-type {name} needs {flag}")
    return Path(value)


def _from_file(name: str, path: Path, *, with_fim: bool) -> Tokenizer:
    definition = read_definition(path)
    if with_fim:
        add_special_tokens(definition, [EOD, *FIM_TOKENS])
    elif EOD in definition["model"]["vocab"]:
        add_special_tokens(definition, [EOD])
    if all(token["content"] != EOD for token in definition["added_tokens"]):
        raise DataError(
            f"{path} has no {EOD}, which ends documents; --tokenizer-type TokenizerFromFileWithFIM adds it, "
            "tools/train_tokenizer.py makes a tokenizer that has it"
        )
    return _make(name, definition, path, eod=EOD)


def _from_folder(name: str, folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise DataError(
            f"--tokenizer-model {folder} is not a folder; nothing is downloaded: give a local one that holds "
            "tokenizer.json"
        )
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"{folder} has no tokenizer.json; transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained"
            "(FOLDER) makes one for most tokenizers"
        )
    definition = read_definition(path)
    eod = EOD
    config_path = folder / "tokenizer_config.json"
    if config_path.is_file():
        declared = read_json(config_path).get("eos_token")
        eod = (declared.get("content") if isinstance(declared, dict) else declared) or EOD
        if not isinstance(eod, str):
            raise DataError(f"{config_path} has an eos_token that is no text; name the token there")
    known = [token["content"] for token in definition["added_tokens"]]
    if eod not in known and eod not in definition["model"]["vocab"]:
        raise DataError(
            f"{folder} has no {eod!r} token to end documents; name its own as eos_token in {config_path}"
        )
    add_special_tokens(definition, [eod])
    return _make(name, definition, path, eod=eod, folder=folder)


def _from_vocab_and_merges(name: str, vocab: Path, merges: Path, *, with_fim: bool) -> Tokenizer:
    entries = read_json(vocab)
    if EOD not in entries:
        raise DataError(f"{vocab} has no {EOD}; give GPT-2's vocab.json")
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer file {merges} cannot be read: {error}") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in pairs):
        raise DataError(f"{merges} is not a merges.txt: it holds lines that are not two tokens")
    definition = byte_pair_definition(entries, pairs)
    check_definition(definition, vocab)
    add_special_tokens(definition, [EOD, *FIM_TOKENS] if with_fim else [EOD])
    return _make(name, definition, f"{vocab} with {merges}", eod=EOD)


def _make(
    name: str, definition: Json, where: object, *, eod: str, folder: Path | None = None
) -> JsonTokenizer:
    """Build the tokenizer of a definition; a DataError names where it was read."""
    try:
        return JsonTokenizer(name, definition, eod=eod, folder=folder)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
