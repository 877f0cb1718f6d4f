"""Fill in the middle, document by document inside a packed sample (StarCoder §5.1; Bavarian et al., 2022).

A chosen document is cut at two characters into prefix P, middle M and suffix S, and becomes

    PSM   <fim_prefix> P <fim_suffix> S <fim_middle> M
    SPM   <fim_prefix> <fim_suffix> S <fim_middle> P M      (the paper's variant 2)

where the ids of each part are, by definition, those of decoding the document, cutting, and encoding the part.
Which documents, where, and in which order is a function of the sample's key and the document's place in the sample.

What this file guarantees for every window of ids:

- The bytes come back: undoing it gives those of the window, up to where the sample ends. Ids that hold part of a
  character, at the ends of a window, stay as they are, at the outer ends of P and S.
- No structure is cut. It needs room for three more ids, and parts encode to more ids than the whole, so the end of
  the window drops out; a document that meets the end of the sample loses text *before* it is cut and encoded.
- Sentinels of the corpus (<filename>, <reponame>, …) count as one character, are never split, and keep their ids.

Knows nothing of datasets, epochs or randomness beyond the key it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron.data.permutation import random_word
from megatron.errors import ConfigError
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.special_tokens import (
    FIM_MIDDLE,
    FIM_PAD,
    FIM_PREFIX,
    FIM_SUFFIX,
    FIM_TOKENS,
)

NUM_SENTINELS = 3  # ids that a transformed document has besides its parts
# A normaliser or an added space would change one of these, and with it the text of every document cut in three.
LOSSLESS_PROBES = ("x", " x", "x  =\t1\r\n\n", "\u00e9 e\u0301 \ufb01 \U0001f600 ")

# Counters of the draws that follow from a document's word; fragments get words of their own from FRAGMENTS on.
CHOSEN, CUT_1, CUT_2, ORDER, FRAGMENTS = range(5)

Ids = npt.NDArray[np.int64]  # [n]
Run = str | int  # text, or one sentinel of the corpus
Item = str | Ids  # text that is yet to be encoded, or ids as they will stand


@dataclass(frozen=True)
class Piece:
    """What is left alone or transformed as a whole: a document, or one file of a repository."""

    ids: Ids
    word: int  # its draws
    is_chosen: bool
    end: int | None  # the id that follows it in the window


class FillInTheMiddle:
    """Transforms windows of token ids; see the module's docstring."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        rate: float,
        spm_rate: float = 0.5,
        split_token: str | None = None,
        fragment_rate: float = 0.5,
    ) -> None:
        """Transform a document with probability `rate`, in SPM order with probability `spm_rate`.

        With `split_token`, a document that holds this sentinel is a repository: if chosen, each file between two of
        them is transformed with probability `fragment_rate` instead. Raises ConfigError for a tokenizer that lacks
        the sentinels or does not give back the text it encodes.
        """
        self._tokenizer = tokenizer
        self._rate, self._spm_rate, self._fragment_rate = rate, spm_rate, fragment_rate
        self._eod = tokenizer.eod
        self._is_sentinel = np.zeros(tokenizer.vocab_size, np.bool_)
        self._is_sentinel[list(tokenizer.special_tokens.values())] = True
        _check_tokenizer(tokenizer, split_token)
        self._pad = tokenizer.special_tokens[FIM_PAD]
        self._prefix, self._middle, self._suffix = (
            np.array([tokenizer.special_tokens[name]])
            for name in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX)
        )
        self._split = None if split_token is None else tokenizer.special_tokens[split_token]

    def __call__(self, window: Ids, key: int) -> tuple[Ids, int]:
        """Transform the documents of a window with the draws of `key`.

        Gives as many ids as the window has, and how many of them are not the padding at the end.
        """
        result = np.full_like(window, self._pad)
        num_tokens = 0
        pieces = list(self._pieces(window, key))
        for piece, transformed in zip(pieces, self._transform(pieces, len(window)), strict=True):
            room = len(window) - num_tokens
            needed = max(len(transformed), len(piece.ids) + NUM_SENTINELS)
            if len(transformed) and needed <= room:
                ids, is_whole = transformed, True
            else:
                ids, is_whole = self._fit(piece, room)
            result[num_tokens : num_tokens + len(ids)] = ids
            num_tokens += len(ids)
            if not is_whole or num_tokens == len(window):
                break
            if piece.end is not None:
                result[num_tokens] = piece.end
                num_tokens += 1
        return result, num_tokens

    def _pieces(self, window: Ids, key: int) -> Iterator[Piece]:
        for number, (document, end) in enumerate(_split_at(window, self._eod)):
            word = random_word(key, number)
            is_chosen = _happens(random_word(word, CHOSEN), self._rate)
            if not is_chosen or self._split is None or not np.any(document == self._split):
                yield Piece(document, word, is_chosen, end)
                continue
            for place, (fragment, split) in enumerate(_split_at(document, self._split)):
                word_of_fragment = random_word(word, FRAGMENTS + place)
                is_cut = _happens(random_word(word_of_fragment, CHOSEN), self._fragment_rate)
                yield Piece(fragment, word_of_fragment, is_cut, end if split is None else split)

    def _transform(self, pieces: Sequence[Piece], room: int) -> list[Ids]:
        """Transform the chosen pieces that may fit, all with one call of the encoder; nothing for the others."""
        cuts: list[list[Item]] = []
        for piece in pieces:
            room -= len(piece.ids) + NUM_SENTINELS * piece.is_chosen
            is_cut = piece.is_chosen and room >= 0
            cuts.append((is_cut and self._cut(piece.ids, piece.word)) or [piece.ids[:0]])
        return self._encode(cuts)

    def _fit(self, piece: Piece, room: int) -> tuple[Ids, bool]:
        """Give a piece in at most `room` ids, and whether it is all there: if not, the sample ends with it."""
        num_kept = len(piece.ids)
        if num_kept + NUM_SENTINELS > room:
            num_kept = room - NUM_SENTINELS
        while piece.is_chosen and num_kept > 0:
            items = self._cut(piece.ids[:num_kept], piece.word)
            if items is None:
                break
            (transformed,) = self._encode([items])
            if len(transformed) <= room:
                return transformed, num_kept == len(piece.ids)
            num_kept -= len(transformed) - room
        return piece.ids[:room], len(piece.ids) <= room

    def _cut(self, ids: Ids, word: int) -> list[Item] | None:
        """Cut ids in three and put them in order; None if they do not hold a whole character."""
        head, runs, tail = ids[:0], self._decode(ids), ids[:0]
        if runs is None:  # part of a character at an end
            start, stop = self._whole_characters(ids)
            head, runs, tail = ids[:start], self._decode(ids[start:stop]), ids[stop:]
        if not runs:
            return None
        num_places = sum(map(_num_characters, runs)) + 1
        cuts = (_below(random_word(word, number), num_places) for number in (CUT_1, CUT_2))
        first, second = sorted(cuts)
        bounds = ((0, first), (first, second), (second, num_places))
        prefix, middle, suffix = (_items(_slice(runs, low, high)) for low, high in bounds)
        if _happens(random_word(word, ORDER), self._spm_rate):
            start_of_suffix, start_of_prefix = [self._prefix, self._suffix], [self._middle, head]
            return [*start_of_suffix, *suffix, tail, *start_of_prefix, *prefix, *middle]
        return [
            *(self._prefix, head, *prefix),
            *(self._suffix, *suffix, tail),
            *(self._middle, *middle),
        ]

    def _whole_characters(self, ids: Ids) -> tuple[int, int]:
        """Give the part of ids[start:stop] without the ids at either end that hold part of a character."""
        start, stop = 0, len(ids)
        while start < stop and _starts_inside(self._bytes(ids[start : start + 1])):
            start += 1
        # A character has at most four bytes, and an id of text at least one.
        while start < stop and _ends_inside(self._bytes(ids[max(start, stop - 4) : stop])):
            stop -= 1
        return start, stop

    def _decode(self, ids: Ids) -> list[Run] | None:
        """Turn ids into text and sentinels; None if the text is not UTF-8."""
        runs: list[Run] = []
        start = 0
        try:
            for position in np.flatnonzero(self._is_sentinel[ids]).tolist():
                runs += [self._bytes(ids[start:position]).decode(), int(ids[position])]
                start = position + 1
            runs.append(self._bytes(ids[start:]).decode())
        except UnicodeDecodeError:
            return None
        return [run for run in runs if run != ""]

    def _encode(self, laid_out: Sequence[list[Item]]) -> list[Ids]:
        """Encode each text by itself and join what is laid out together."""
        texts = [item for items in laid_out for item in items if isinstance(item, str)]
        ids, sizes = self._tokenizer.encode_batch(texts)
        ends = iter(np.cumsum(sizes).tolist())
        end = 0
        result = []
        for items in laid_out:
            parts: list[npt.NDArray[np.integer]] = []
            for item in items:
                if isinstance(item, str):
                    start, end = end, next(ends)
                    parts.append(ids[start:end])
                else:
                    parts.append(item)
            result.append(np.concatenate(parts).astype(np.int64, copy=False))
        return result

    def _bytes(self, ids: Ids) -> bytes:
        """Give the bytes of ids, of which sentinels have none."""
        if self._is_sentinel[ids].any():
            ids = ids[~self._is_sentinel[ids]]
        return self._tokenizer.decode_bytes(ids)


def _check_tokenizer(tokenizer: Tokenizer, split_token: str | None) -> None:
    missing = [name for name in FIM_TOKENS if name not in tokenizer.special_tokens]
    if missing:
        raise ConfigError(
            f"--fim-rate above 0 needs the tokens {' '.join(FIM_TOKENS)}, and the tokenizer {tokenizer.name} has no "
            f"{' '.join(missing)}; train one with tools/train_tokenizer.py, take --tokenizer-type "
            "TokenizerFromFileWithFIM, which adds them, or leave --fim-rate out"
        )
    if split_token is not None and split_token not in tokenizer.special_tokens:
        raise ConfigError(
            f"--fim-split-sample {split_token} is not a special token of the tokenizer {tokenizer.name}; it has "
            f"{' '.join(tokenizer.special_tokens)}"
        )
    for probe in LOSSLESS_PROBES:
        given_back = b"".join(tokenizer.token_bytes(token) for token in tokenizer.tokenize(probe))
        if given_back != probe.encode():
            raise ConfigError(
                f"--fim-rate above 0 needs a tokenizer that keeps every byte, and {tokenizer.name} turns {probe!r} "
                f"into {given_back!r} (a normaliser or an added space); take a byte-level one without either"
            )


def _split_at(ids: Ids, separator: int) -> Iterator[tuple[Ids, int | None]]:
    """Give the ids before each separator with it, and those after the last with None."""
    start = 0
    for position in np.flatnonzero(ids == separator).tolist():
        yield ids[start:position], separator
        start = position + 1
    yield ids[start:], None


def _slice(runs: list[Run], start: int, stop: int) -> list[Run]:
    """Give characters start to stop, where a sentinel counts as one."""
    result: list[Run] = []
    for run in runs:
        num_characters = _num_characters(run)
        low, high = max(start, 0), min(stop, num_characters)
        if low < high:
            result.append(run if isinstance(run, int) else run[low:high])
        start, stop = start - num_characters, stop - num_characters
    return result


def _items(runs: list[Run]) -> list[Item]:
    """Spell the sentinels of the corpus as ids."""
    return [np.array([run]) if isinstance(run, int) else run for run in runs]


def _num_characters(run: Run) -> int:
    return 1 if isinstance(run, int) else len(run)


def _starts_inside(data: bytes) -> bool:
    """Say whether bytes of UTF-8 start in the middle of a character."""
    return bool(data) and data[0] & 0xC0 == 0x80


def _ends_inside(data: bytes) -> bool:
    """Say whether bytes of UTF-8 end in the middle of a character."""
    for num_bytes in range(1, min(3, len(data)) + 1):
        byte = data[-num_bytes]
        if byte & 0xC0 != 0x80:  # the first byte of the last character tells its length
            return num_bytes < 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
    return False


def _happens(word: int, probability: float) -> bool:
    return word < int(probability * 2.0**64)


def _below(word: int, bound: int) -> int:
    """Scale 64 random bits to range(bound)."""
    return word * bound >> 64
