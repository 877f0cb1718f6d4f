"""Whether a text stands in a token file, by a filter of a few bits for each of its bytes: `PREFIX.membership`.

The filter holds fingerprints of all documents, each by itself, as csrc/fingerprints.cpp defines them: of every
`window` grams of `gram` bytes of normalised text in a row, one. So any run of gram + window - 1 normalised bytes that
a text shares with a document is found. It is not said in which (`trace` does), and what is found may be false, at
the rate that was designed. The question needs neither tokens nor tokenizer: the file alone answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.attribution import bloom
from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import IndexFile, IndexWriter, check_room, check_spelling
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling
from megatron.attribution.threads import in_threads
from megatron.data.token_range import Runs
from megatron.errors import DataError

KIND = "membership"
WORDS = bloom.BLOCK_BITS // 64
BLOCK_BYTES = bloom.BLOCK_BITS // 8
WRITTEN_BLOCKS = 1 << 13  # at a time
WORKING_BYTES = 100_000_000  # tables and chunks, with room to spare

Progress = Callable[[int], object]
Fingerprints = npt.NDArray[np.uint64]


def wanted(options: BuildOptions) -> dict[str, Any]:
    """Give what the header of an index says if it was built with such options."""
    return {"gram": options.gram, "window": options.window, "rate": options.false_positives}


def expected_bytes(file: TokenFile, options: BuildOptions) -> int:
    """Give the size of a filter, as far as can be told before tokens are read."""
    # Two fingerprints for every window + 1 bytes, about four bytes to a token.
    keys = file.dataset.num_tokens * 4 * 2 // (options.window + 1)
    return bloom.design(options.false_positives).num_blocks(keys) * BLOCK_BYTES


def num_passes(file: TokenFile, options: BuildOptions) -> int:
    """Give how often the tokens will be read, as far as can be told before they are."""
    return 1 + -(-expected_bytes(file, options) // options.memory_bytes)


def memory(file: TokenFile, options: BuildOptions) -> int:
    """Give the bytes that building takes."""
    return min(expected_bytes(file, options), options.memory_bytes) + WORKING_BYTES


def build(
    file: TokenFile, spelling: Spelling, options: BuildOptions, on_tokens: Progress
) -> dict[str, Any]:
    """Write PREFIX.membership and give its header's facts; on_tokens is told of tokens as they are read.

    Reads the tokens once to count distinct fingerprints, and once for each part of the filter that fits in memory.
    """
    from megatron.attribution import _fingerprints

    registers = np.zeros(1 << bloom.PRECISION, np.uint8)
    for found in _fingerprints_of(file, spelling, options, on_tokens):
        _fingerprints.count_distinct(registers, found)
    num_keys = bloom.estimate_distinct(registers)
    design = bloom.design(options.false_positives)
    num_blocks = design.num_blocks(num_keys)
    with IndexWriter(file.prefix, KIND, num_arrays=1) as writer:
        check_room(writer.path, num_blocks * BLOCK_BYTES)
        writer.begin("blocks", "<u8")
        rates = []
        part = max(1, min(num_blocks, options.memory_bytes // BLOCK_BYTES))
        for first in range(0, num_blocks, part):
            blocks = np.zeros((min(part, num_blocks - first), WORDS), np.uint64)

            def add(keys: Fingerprints, first: int = first, blocks: Any = blocks) -> None:
                _fingerprints.insert(blocks, first, num_blocks, design.probes, keys)

            for _ in _fingerprints_of(file, spelling, options, on_tokens, then=add):
                pass
            for start in range(0, len(blocks), WRITTEN_BLOCKS):
                some = blocks[start : start + WRITTEN_BLOCKS]
                bits_set = np.bitwise_count(some).sum(axis=1)
                rates.append((bloom.rate_of_bits(bits_set, design.probes), len(some)))
                writer.write(some)
        facts = {
            **wanted(options),
            "normalisation": "each run of space, \\t, \\n, \\v, \\f, \\r is one space",
            "spelling": spelling.sha256,
            "documents": file.dataset.num_documents,
            "tokens": file.dataset.num_tokens,
            "fingerprints": num_keys,
            "bits_per_fingerprint": design.bits_per_key,
            "probes": design.probes,
            "block_bits": bloom.BLOCK_BITS,
            "rate_as_filled": sum(rate * count for rate, count in rates) / num_blocks,
        }
        writer.finish(facts)
    return facts


def _fingerprints_of(
    file: TokenFile,
    spelling: Spelling,
    options: BuildOptions,
    on_tokens: Progress,
    *,
    then: Callable[[Fingerprints], None] = lambda keys: None,
) -> Iterator[Fingerprints]:
    """Give the fingerprints of all documents, a chunk at a time, after a thread has done `then` with them."""
    table = spelling.text

    def work(chunk: tuple[int, npt.NDArray[np.int64]]) -> tuple[int, Fingerprints]:
        start, ends = chunk
        tokens = file.dataset.tokens[start : start + int(ends[-1])]
        keys = table.fingerprints(tokens, ends, options.gram, options.window)
        then(keys)
        return len(tokens), keys

    try:
        for num_tokens, keys in in_threads(work, file.chunks(), options.threads):
            yield keys
            on_tokens(num_tokens)
    except ValueError as error:  # an id that the tokenizer does not have
        raise DataError(
            f"{file.prefix} holds {error}, and the tokenizer has ids up to {len(table) - 1}: the file is damaged or "
            "comes from another tokenizer"
        ) from None


@dataclass(frozen=True)
class MemberSpan:
    """A part of a text, in bytes, that stands in token files; `withheld` if only opted-out documents may hold it."""

    start: int
    stop: int
    prefixes: tuple[str, ...]
    withheld: bool = False


@dataclass(frozen=True)
class Answer:
    """What filters say of a text."""

    num_bytes: int
    num_normalised: int
    spans: tuple[MemberSpan, ...]
    look_ups: int
    expected_false: float  # spans that are found in a text of this length that is nowhere

    @property
    def covered(self) -> int:
        """Bytes that stand in the data."""
        return sum(span.stop - span.start for span in self.spans if not span.withheld)

    def to_json(self) -> dict[str, Any]:
        """Give the answer as JSON values."""
        return {
            "bytes": self.num_bytes,
            "normalised_bytes": self.num_normalised,
            "covered_bytes": self.covered,
            "expected_false_spans": self.expected_false,
            "spans": [
                {
                    "start": span.start,
                    "stop": span.stop,
                    "datasets": list(span.prefixes),
                    "withheld": span.withheld,
                }
                for span in self.spans
            ],
        }


class MembershipIndex:
    """The filter of one token file."""

    def __init__(self, prefix: str) -> None:
        """Open PREFIX.membership. Raises DataError if it is missing, damaged or stale."""
        self.prefix = prefix
        self.index = IndexFile.open(prefix, KIND)
        fact = self.index.fact
        self.gram, self.window = int(fact("gram")), int(fact("window"))
        self.rate, self._probes = float(fact("rate_as_filled")), int(fact("probes"))
        self._blocks = self.index.array("blocks", (-1, WORDS))

    def contains(self, keys: Fingerprints) -> npt.NDArray[np.bool_]:
        """Say of each fingerprint whether a document has it, but for false positives."""
        from megatron.attribution import _fingerprints

        return _fingerprints.contains(self._blocks, self._probes, keys)


def ask(
    text: bytes,
    indexes: Sequence[MembershipIndex],
    files: Sequence[TokenFile] = (),
    spelling: Spelling | None = None,
) -> Answer:
    """Find the parts of a text that stand in token files.

    A part begins with a fingerprint of the text that is found, and goes on over all grams that are found with gaps
    of at most a window, as those of a document have. files, of the same prefixes, say what is opted out; they need a
    spelling. What only fingerprints of opted-out documents speak for is withheld.
    """
    from megatron.attribution import _fingerprints

    normalised, places = _fingerprints.normalise(text)
    found: list[tuple[int, int, str, bool]] = []
    look_ups, expected = 0, 0.0
    excluded = {file.prefix: file for file in files if len(file.excluded)}
    for index in indexes:
        keys, chosen = _fingerprints.grams(normalised, index.gram, index.window)
        look_ups += len(chosen)
        expected += len(chosen) * index.rate
        is_seed = np.zeros(len(keys), bool)
        is_seed[chosen] = index.contains(keys[chosen])
        if not is_seed.any():
            continue
        is_open = index.contains(keys)
        is_withheld = np.zeros(len(keys), bool)
        if index.prefix in excluded:
            assert spelling is not None
            # else its fingerprints would be none of the filter, and what is opted out would be found
            check_spelling(index.index.path, index.index.facts, spelling.sha256)
            is_withheld = is_open & _is_opted_out(excluded[index.prefix], index, spelling, keys)
            is_open &= ~is_withheld
        for withheld, is_found in ((False, is_open), (True, is_withheld)):
            for first, last in _chains(np.flatnonzero(is_found), index.window):
                if (is_seed & is_found)[first : last + 1].any():
                    stop = int(places[last + index.gram - 1]) + 1
                    found.append((int(places[first]), stop, index.prefix, withheld))
    return Answer(len(text), len(normalised), _join(found), look_ups, expected)


def _chains(places: npt.NDArray[np.integer], gap: int) -> Iterator[tuple[int, int]]:
    """Give the first and last of ascending places that follow each other with gaps of at most `gap`."""
    if not len(places):
        return
    (ends,) = np.nonzero(np.diff(places) > gap)
    firsts, lasts = places[np.append(0, ends + 1)], places[np.append(ends, len(places) - 1)]
    yield from zip(firsts.tolist(), lasts.tolist(), strict=True)


def _is_opted_out(
    file: TokenFile, index: MembershipIndex, spelling: Spelling, keys: Fingerprints
) -> npt.NDArray[np.bool_]:
    """Say of each fingerprint whether an opted-out document has it, by reading these."""
    result = np.zeros(len(keys), bool)
    runs: Runs = file.excluded
    for start, ends in file.chunks(runs):
        tokens = file.dataset.tokens[start : start + int(ends[-1])]
        result |= np.isin(keys, spelling.text.fingerprints(tokens, ends, index.gram, index.window))
    return result


def _join(found: Sequence[tuple[int, int, str, bool]]) -> tuple[MemberSpan, ...]:
    """Join parts that overlap, those that are withheld by themselves."""
    spans: list[MemberSpan] = []
    for withheld in (False, True):
        joined: list[tuple[int, int, set[str]]] = []
        for start, stop, prefix, is_withheld in sorted(found):
            if is_withheld != withheld:
                continue
            if joined and start <= joined[-1][1]:
                first, last, prefixes = joined[-1]
                joined[-1] = (first, max(last, stop), prefixes | {prefix})
            else:
                joined.append((start, stop, {prefix}))
        spans += [
            MemberSpan(start, stop, tuple(sorted(prefixes)), withheld)
            for start, stop, prefixes in joined
        ]
    return tuple(sorted(spans, key=lambda span: (span.start, span.stop)))
