"""The encoder of csrc/ for a `tokenizer.json`: which definitions it serves, and its making.

It serves byte-level byte-pair encoding with the pre-tokenizers that code models use; ids are those of the
`tokenizers` package, thirty times as fast. Knows nothing of files, flags or sentinels: it is given the definition
that is used for encoding, in which sentinels are out of reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.errors import DataError

if TYPE_CHECKING:
    from megatron.tokenizer._byte_pair import BytePairEncoder

Json = dict[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_IDS = 1 << 21  # csrc/byte_pair_merges.h keeps a pair of them and its rank in one word
# The most digits of a piece of numbers: three in Llama 3 and in the files made of cl100k, one in Qwen 2's expression
# (whose own files also normalise text, which is not served).
MAX_DIGITS = {
    CL100K.replace("NUMBERS", r"\p{N}{1,3}"): 3,
    CL100K.replace("NUMBERS", r"\p{N}"): 1,
}


def _byte_of_char() -> dict[str, int]:
    """Invert GPT-2's spelling of bytes: printable Latin-1 as itself, the other 68 from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()


class UnsupportedError(Exception):
    """A definition that the encoder does not serve; the message says what of it."""


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut; see csrc/pretokenizer.h."""

    is_cl100k: bool
    max_digits: int
    digits_alone: bool


def make_encoder(definition: Json, token_bytes: Sequence[bytes]) -> BytePairEncoder:
    """Make the encoder of a byte-level definition; token_bytes holds what each id decodes to.

    Raises UnsupportedError for one that it does not serve, DataError for merges that do not fit the vocabulary.
    """
    from megatron.tokenizer._byte_pair import BytePairEncoder

    model = definition["model"]
    if definition.get("normalizer") is not None:
        raise UnsupportedError(f"a normaliser ({definition['normalizer'].get('type')})")
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(f"{option} {model[option]!r}")
    plain = [token["content"] for token in definition["added_tokens"] if not token["special"]]
    if plain:
        raise UnsupportedError(f"{len(plain)} added tokens that are not special, as {plain[0]!r}")
    if len(token_bytes) > MAX_IDS:
        raise UnsupportedError(f"{len(token_bytes):,} ids")
    pre_tokenizer = read_pre_tokenizer(definition.get("pre_tokenizer"))
    vocab: dict[str, int] = model["vocab"]
    is_piece, known = [False] * len(token_bytes), frozenset(BYTE_OF_CHAR)
    for token, number in vocab.items():
        is_piece[number] = known.issuperset(token)
    try:
        merges = [
            (vocab[left], vocab[right], vocab[left + right]) for left, right in model["merges"]
        ]
    except KeyError as error:
        raise DataError(
            f"its merges use {error.args[0]!r}, which its vocabulary lacks; copy it again"
        ) from None
    if len(set(vocab.values())) < len(vocab):
        raise UnsupportedError("a vocabulary in which two tokens share an id")
    try:
        return BytePairEncoder(
            list(token_bytes),
            is_piece,
            merges,
            is_cl100k=pre_tokenizer.is_cl100k,
            max_digits=pre_tokenizer.max_digits,
            digits_alone=pre_tokenizer.digits_alone,
            ignore_merges=bool(model.get("ignore_merges")),
        )
    except ValueError as error:  # too many merges, or an added token in the place of a byte's
        raise UnsupportedError(str(error)) from None


def read_pre_tokenizer(definition: Json | None) -> PreTokenizer:
    """Read the pre-tokenizer of a tokenizer.json; raise UnsupportedError for one that is not known.

    Known is [Digits] ByteLevel, with GPT-2's expression in ByteLevel, or before it as one Split of any known one.
    """
    stage = definition or {}
    stages: list[Json] = stage["pretokenizers"] if stage.get("type") == "Sequence" else [stage]
    kinds = [stage.get("type") for stage in stages]
    digits_alone = kinds[0] == "Digits" and stages[0].get("individual_digits") is True
    if digits_alone:
        stages, kinds = stages[1:], kinds[1:]
    pattern = None
    if kinds[:1] == ["Split"]:
        pattern = _split_pattern(stages[0])
        stages, kinds = stages[1:], kinds[1:]
    if kinds != ["ByteLevel"]:
        raise UnsupportedError(f"the pre-tokenizer {kinds[0] if kinds else None}")
    if stages[0].get("add_prefix_space", True):
        raise UnsupportedError("a space added before text (add_prefix_space)")
    if stages[0].get("use_regex", True) == (pattern is not None):
        raise UnsupportedError("a pre-tokenizer with no expression, or with two")
    if pattern is None or pattern == GPT2:
        return PreTokenizer(is_cl100k=False, max_digits=0, digits_alone=digits_alone)
    if pattern not in MAX_DIGITS:
        raise UnsupportedError(f"the pre-tokenizer's expression {pattern}")
    return PreTokenizer(is_cl100k=True, max_digits=MAX_DIGITS[pattern], digits_alone=digits_alone)


def _split_pattern(stage: Json) -> str:
    pattern = stage["pattern"]
    if stage.get("behavior") != "Isolated" or stage.get("invert") or "Regex" not in pattern:
        raise UnsupportedError(f"the splitter {stage}")
    return str(pattern["Regex"])
