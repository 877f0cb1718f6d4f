"""Tokenizers defined by a `tokenizer.json`: byte-pair encoding by csrc/, or through the `tokenizers` package.

The definition is changed in two ways before it is used for encoding: sentinels are made unreachable from text, and
whatever adds to or cuts the ids of a text (templates, truncation, padding, merge dropout) is taken out.
Knows nothing of flags.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers

from megatron.errors import DataError
from megatron.logging import get_logger
from megatron.tokenizer.byte_pair import BYTE_OF_CHAR, UnsupportedError, make_encoder
from megatron.tokenizer.definition_check import check_definition
from megatron.tokenizer.interface import EncodedBatch, Tokenizer
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.whole_file import replacing

if TYPE_CHECKING:
    from megatron.tokenizer._byte_pair import BytePairEncoder

logger = get_logger(__name__)

Json = dict[str, Any]  # the content of a tokenizer.json

# No byte-level piece holds a raw newline (it is spelled Ċ), so a name that starts with one is out of reach.
OUT_OF_REACH = "\n"
COMPANION_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# A normaliser or an added prefix space changes one of these characters.
PROBE = "x  =\t1\r\n\n\u00e9 e\u0301 \ufb01 \U0001f600 "
# Both encoders are tried on this one: contractions in either case, runs of numbers and spaces, other scripts.
SELF_CHECK = (
    PROBE
    + "I'm you'LL 's'T\u017f 12345 \u0661\u0662\u00b2 \u3000\u00a0\u6f22\u5b57 _a.b()\n\n  \n\tif(x):\r\n    "
)


class JsonTokenizer(Tokenizer):
    """A byte-pair tokenizer that loses nothing: byte-level, or with a fallback to bytes."""

    def __init__(
        self, name: str, definition: Json, *, eod: str, folder: Path | None = None
    ) -> None:
        """Build from the content of a tokenizer.json; `folder` holds companion files for `save`.

        Raises DataError if the definition is not usable, which does not name the file: the caller knows it. Call
        `add_special_tokens` first for missing sentinels.
        """
        self.name = name
        self._folder = folder
        self._json = json.dumps(definition, ensure_ascii=False)
        specials = {
            token["content"]: token["id"]
            for token in sorted(definition["added_tokens"], key=lambda token: token["id"])
            if token["special"] or token["content"] in (eod, *STARCODER_SPECIAL_TOKENS)
        }
        self.special_tokens = specials
        self.eod = specials[eod]
        for_encoding = definition_for_encoding(definition, specials.keys())
        self.package = _load(for_encoding)
        self.package.encode_special_tokens = True  # do not look for them in text
        self._is_byte_level = _is_byte_level(definition)
        self._bytes = token_bytes_of(definition)
        self.vocab_size = len(self._bytes)
        self._special_ids = frozenset(specials.values())
        self._encoder = self._make_encoder(for_encoding)
        if self.detokenize(self.tokenize(PROBE)) != PROBE:
            logger.info(
                "%s: this tokenizer does not give every text back as it was (a normaliser or an added space)",
                name,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # The package's own pickle forgets encode_special_tokens.
        return _restore, (self.name, self._json, self.eod, self._folder)

    def tokenize(self, text: str) -> list[int]:
        if self._encoder is not None:
            return self._encoder.encode_batch([text])[0].tolist()
        return self.package.encode(text, add_special_tokens=False).ids

    def tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._encoder is not None:
            ids, sizes = self._encoder.encode_batch(texts)
            return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])] if texts else []
        encodings = self.package.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_batch(self, texts: Sequence[str | bytes]) -> EncodedBatch:
        if self._encoder is not None:
            return self._encoder.encode_batch(texts)
        return super().encode_batch(texts)

    def detokenize(self, ids: Sequence[int]) -> str:
        if self._is_byte_level:
            return b"".join([self._bytes[number] for number in ids]).decode("utf-8", "replace")
        # Joining bytes would miss what a decoder does at the ends, such as dropping the first space.
        spelling = {number: token for token, number in self.special_tokens.items()}
        tokens = [spelling.get(number) or self.package.id_to_token(number) for number in ids]
        return self.package.decoder.decode(tokens)

    def decode_bytes(self, ids: npt.NDArray[np.integer]) -> bytes:
        if self._encoder is not None:
            return self._encoder.decode(ids)
        return super().decode_bytes(ids)

    def _make_encoder(self, definition: Json) -> BytePairEncoder | None:
        """Make the fast encoder; None, and a line that says why, where only the package serves this definition."""
        try:
            if not self._is_byte_level:
                raise UnsupportedError("a model that is not byte-level")
            encoder = make_encoder(definition, self._bytes)
            expected = self.package.encode(SELF_CHECK, add_special_tokens=False).ids
            if encoder.encode_batch([SELF_CHECK])[0].tolist() != expected:
                raise UnsupportedError("ids that differ from those of the tokenizers package")
        except UnsupportedError as error:
            logger.info(
                "%s: encoding through the tokenizers package, about thirty times slower than csrc/, which does not "
                "serve %s",
                self.name,
                error,
            )
            return None
        return encoder

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self._special_ids else self._bytes[token]

    def files(self) -> dict[str, bytes]:
        files = {"tokenizer.json": _spell(json.loads(self._json)).encode()}
        for name in COMPANION_FILES:
            if self._folder is not None and (self._folder / name).is_file():
                files[name] = (self._folder / name).read_bytes()
        return files

    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        # a tenth of a second for 49,152 ids, and every token file that is opened is compared with it
        definition = json.loads(self._json)
        parts = {key: definition.get(key) for key in ("normalizer", "pre_tokenizer", "model")}
        parts["added_tokens"] = definition["added_tokens"]
        parts["eod"] = self.eod
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _restore(name: str, definition: str, eod: int, folder: Path | None) -> JsonTokenizer:
    parsed = json.loads(definition)
    spelling = {token["id"]: token["content"] for token in parsed["added_tokens"]}
    return JsonTokenizer(name, parsed, eod=spelling[eod], folder=folder)


def token_bytes_of(definition: Json) -> list[bytes]:
    """Give the bytes that each id decodes to; added tokens, sentinels among them, to their spelling."""
    to_bytes = _byte_level_bytes if _is_byte_level(definition) else _byte_fallback_bytes
    spelled = {number: to_bytes(token) for token, number in definition["model"]["vocab"].items()}
    spelled |= {token["id"]: token["content"].encode() for token in definition["added_tokens"]}
    return [spelled.get(number, b"") for number in range(max(spelled) + 1)]


def read_definition(path: Path) -> Json:
    """Read a tokenizer.json and check what the rest relies on; merges come back as pairs."""
    definition = read_json(path)
    model = definition.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise DataError(f"{path} is not a tokenizer.json: it has no model with a vocab")
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise DataError(
            f"{path} holds a {kind} model; only BPE is supported here. For SentencePiece take its .model file "
            "with --tokenizer-type SentencePieceTokenizer"
        )
    if isinstance(model.get("merges"), list):
        model["merges"] = [
            merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]
        ]
    definition["added_tokens"] = definition.get("added_tokens") or []
    check_definition(definition, path)
    if _is_byte_level(definition):
        missing = [char for char in BYTE_OF_CHAR if char not in model["vocab"]]
    elif model.get("byte_fallback") and not model.get("ignore_merges"):
        missing = [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in model["vocab"]]
    else:
        raise DataError(
            f"{path} is neither byte-level nor has it byte_fallback: text outside its vocabulary would be lost; "
            "train one with tools/train_tokenizer.py"
        )
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of the 256 bytes, such as {missing[0]!r}: text that holds them would be "
            "lost; train it with all of them in the alphabet, as tools/train_tokenizer.py does"
        )
    return definition


def read_json(path: Path) -> Json:
    """Read a file that holds one JSON object; raise DataError if it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"tokenizer file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"tokenizer file {path} is not JSON (cut short?): {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"tokenizer file {path} holds {type(content).__name__}, not an object")
    return content


def write_definition(path: Path, definition: Json) -> None:
    """Write a tokenizer.json, complete or not at all: DataError where it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(_spell(definition).encode())
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}; make room on that disk or name another place"
        ) from None


def _spell(definition: Json) -> str:
    return json.dumps(definition, ensure_ascii=False, indent=1)


def byte_pair_definition(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> Json:
    """Make the definition of GPT-2's tokenizer from its vocabulary and merges, without sentinels."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(merge) for merge in merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }


def add_special_tokens(definition: Json, names: Iterable[str]) -> None:
    """Declare sentinels in place: with the id they have in the vocabulary, else with the next free one."""
    vocab, added = definition["model"]["vocab"], definition["added_tokens"]
    for name in names:
        if any(token["content"] == name for token in added):
            continue
        free = max([*vocab.values(), *(token["id"] for token in added)]) + 1
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": vocab.get(name, free), "content": name, **flags, "special": True})
    added.sort(key=lambda token: token["id"])


def definition_for_encoding(definition: Json, specials: Set[str]) -> Json:
    """Copy a definition so that no text encodes to a sentinel and nothing else is added or cut.

    Sentinels keep their ids under names out of reach, because removing them would shift the ids of other added
    tokens; merges that make or use one are dropped.
    """

    def name(token: str) -> str:
        return OUT_OF_REACH + token if token in specials else token

    model = dict(definition["model"], dropout=None)
    model["vocab"] = {name(token): number for token, number in model["vocab"].items()}
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if specials.isdisjoint((left, right, left + right))
    ]
    if model.get("unk_token") is not None:
        model["unk_token"] = name(model["unk_token"])
    added = [
        dict(token, content=name(token["content"]), special=token["content"] in specials)
        for token in definition["added_tokens"]
    ]
    return dict(
        definition,
        model=model,
        added_tokens=added,
        truncation=None,
        padding=None,
        post_processor=None,
    )


def _load(definition: Json) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
    except Exception as error:  # the package raises nothing more specific
        raise DataError(
            f"the tokenizers package refuses it ({error}); it is damaged or was edited: copy or train it again"
        ) from None


def _is_byte_level(definition: Json) -> bool:
    stage = definition.get("pre_tokenizer") or {}
    return any(part.get("type") == "ByteLevel" for part in [stage, *stage.get("pretokenizers", [])])


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(map(BYTE_OF_CHAR.__getitem__, token))
    except KeyError:  # an added token
        return token.encode()


def _byte_fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
