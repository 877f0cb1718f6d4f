"""Tokenizers defined by a SentencePiece `.model` file. Needs the package `sentencepiece`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from megatron.errors import ConfigError, DataError
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece as its file says, normalisation included; a document ends with its end-of-sentence id."""

    def __init__(self, name: str, path: Path) -> None:
        """Open a .model file; raise DataError if it is none, or has no end-of-sentence id."""
        try:
            import sentencepiece
        except ImportError:
            raise ConfigError(f"{name} needs: pip install sentencepiece") from None
        if not path.is_file():
            raise DataError(f"tokenizer model {path} does not exist; give SentencePiece's .model")
        self.name = name
        self._path = path
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} is not a SentencePiece model (cut short?): {error}") from None
        model = self._model
        self.vocab_size = model.vocab_size()
        self.eod = model.eos_id()
        if self.eod < 0:
            raise DataError(
                f"{path} has no end-of-sentence id; train it without --eos_id=-1: it ends the documents"
            )
        self.special_tokens = {
            model.id_to_piece(i): i for i in range(self.vocab_size) if model.is_control(i)
        }
        for token in STARCODER_SPECIAL_TOKENS:
            number = model.piece_to_id(token)
            if number != model.unk_id() and not model.is_control(number):
                raise DataError(
                    f"{path} has {token} as a user-defined symbol, so text that spells it would become the "
                    "sentinel; train it with --control_symbols instead of --user_defined_symbols"
                )

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[str, Path]]:
        return SentencePieceTokenizer, (self.name, self._path)

    def tokenize(self, text: str) -> list[int]:
        return self._model.encode(text)

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._model.encode(text) for text in texts]

    def detokenize(self, ids: Sequence[int]) -> str:
        controls = set(self.special_tokens.values())
        pieces: list[str] = []
        run: list[int] = []
        for number in ids:
            if number in controls:
                pieces += [self._model.decode(run), self._model.id_to_piece(number)]
                run = []
            else:
                run.append(number)
        return "".join([*pieces, self._model.decode(run)])

    def token_bytes(self, token: int) -> bytes:
        if self._model.is_control(token):
            return b""
        piece = self._model.id_to_piece(token)
        if self._model.is_byte(token):
            return bytes([int(piece[3:5], 16)])  # <0x0A>
        return piece.replace("▁", " ").encode()

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._path.read_bytes()}

    def fingerprint(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()
