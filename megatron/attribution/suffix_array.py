"""The suffix array of a token file, in pieces that were sorted in bounded memory: `PREFIX.trace`.

A piece is whole documents. Of piece i the file holds two arrays of uint32: `places{i}`, places in the piece in the
order of the tokens from there on, and `starts{i}`, where in `places` those of each id begin. In mode `full` every place is in it,
in mode `line_starts` those at which a line starts: behind an id with a newline in it, or behind a sentinel. Sentinels themselves
begin no place. Order is that of ids as numbers; no text has the id that ends documents, so no match leads out of one.

pydivsufsort sorts bytes, so ids are given to it as big-endian bytes, as many as the largest of a piece needs, and of the
result only what begins at an id is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron.attribution.corpus import TokenFile
from megatron.attribution.index_file import IndexWriter, check_room
from megatron.attribution.options import BuildOptions
from megatron.attribution.spelling import Spelling
from megatron.errors import ConfigError, DataError

KIND = "trace"
CHUNK = 1 << 22  # suffixes looked at in one go
MAX_BYTES = (1 << 31) - 1  # that are sorted with 32-bit places
WORKING_BYTES = 200_000_000  # what a chunk takes, with room to spare

Progress = Callable[[int], object]
Places = npt.NDArray[np.uint32]


def wanted(options: BuildOptions) -> dict[str, Any]:
    """Give what the header of an index says if it was built with such options."""
    return {"mode": mode_of(options)}


def memory(file: TokenFile, options: BuildOptions) -> int:
    """Give the bytes that building takes. Raises ConfigError if --memory is too small."""
    most = min(piece_tokens(file, options), file.dataset.num_tokens)
    return most * bytes_per_token(width_of(file)) + WORKING_BYTES


def mode_of(options: BuildOptions) -> str:
    """Name which places are in the array."""
    return "line_starts" if options.line_starts else "full"


def bytes_per_token(width: int) -> int:
    """Give what sorting takes: the bytes, a 32-bit place of each, and whether a place is wanted."""
    return width + 4 * width + 1 + 1


def width_of(file: TokenFile) -> int:
    """Give how many bytes an id may need."""
    return {1: 1, 2: 2}.get(file.dataset.dtype.itemsize, 3)


def piece_tokens(file: TokenFile, options: BuildOptions) -> int:
    """Give how many tokens are sorted at a time. Raises ConfigError if memory holds next to none."""
    width = width_of(file)
    room = options.memory_bytes - WORKING_BYTES
    most = min(room // bytes_per_token(width), MAX_BYTES // width)
    if most < min(1_000_000, file.dataset.num_tokens):
        raise ConfigError(
            f"--memory {options.memory:g}: a trace of {file.prefix} takes 0.3 at least, as 12 bytes a token and "
            f"{WORKING_BYTES / 1e9:g}; give 4 or more"
        )
    return most


def pieces(file: TokenFile, most: int) -> list[range]:
    """Cut the tokens into pieces of whole documents, each as long as fits."""
    dataset = file.dataset
    result, start = [], 0
    while start < dataset.num_tokens:
        stop = min(start + most, dataset.num_tokens)
        if stop < dataset.num_tokens:
            stop = dataset.document_start(dataset.document_at(stop))
        if stop <= start:
            document = dataset.document_at(start)
            raise ConfigError(
                f"document {document} of {file.prefix} has more than the {most:,} tokens that --memory can sort at a "
                "time; give more"
            )
        result.append(range(start, stop))
        start = stop
    return result


def build(
    file: TokenFile, spelling: Spelling, options: BuildOptions, on_tokens: Progress
) -> dict[str, Any]:
    """Write PREFIX.trace and give its header's facts; on_tokens is told of tokens as they are done."""
    parts = pieces(file, piece_tokens(file, options))
    num_places = 0
    with IndexWriter(file.prefix, KIND, num_arrays=2 * len(parts)) as writer:
        share = 0.15 if options.line_starts else 1.0
        check_room(writer.path, int(file.dataset.num_tokens * 4 * share))
        for number, part in enumerate(parts):
            tokens = file.dataset.tokens[part.start : part.stop]
            check_ids(file, tokens, spelling)
            is_wanted = wanted_places(tokens, spelling, line_starts=options.line_starts)
            counts = np.zeros(len(spelling.sizes), np.int64)
            writer.begin(f"places{number}", "<u4")
            for places in sorted_places(tokens, is_wanted):
                writer.write(places)
                counts += np.bincount(tokens[places], minlength=len(counts))
            writer.begin(f"starts{number}", "<u4")
            writer.write(np.append(0, np.cumsum(counts)).astype("<u4"))
            num_places += int(counts.sum())
            on_tokens(len(part))
        facts = {
            "mode": mode_of(options),
            "spelling": spelling.sha256,
            "documents": file.dataset.num_documents,
            "tokens": file.dataset.num_tokens,
            "places": num_places,
            "pieces": [[part.start, part.stop] for part in parts],
        }
        writer.finish(facts)
    return facts


def check_ids(file: TokenFile, tokens: npt.NDArray[np.integer], spelling: Spelling) -> None:
    """Raise DataError for an id that the tokenizer does not have."""
    for start in range(0, len(tokens), CHUNK):
        some = tokens[start : start + CHUNK]
        if int(some.min()) < 0 or int(some.max()) >= len(spelling.sizes):
            raise DataError(
                f"{file.prefix} holds ids from {some.min()} to {some.max()}, and the tokenizer has ids up to "
                f"{len(spelling.sizes) - 1}: the file is damaged or comes from another tokenizer"
            )


def wanted_places(
    tokens: npt.NDArray[np.integer], spelling: Spelling, *, line_starts: bool
) -> npt.NDArray[np.bool_]:
    """Say of each place of a piece whether it is in the array; a piece starts with a document."""
    result = np.empty(len(tokens), bool)
    for start in range(0, len(tokens), CHUNK):
        some = tokens[start : start + CHUNK]
        np.logical_not(spelling.is_sentinel[some], out=result[start : start + CHUNK])
        if line_starts:
            before = tokens[max(start - 1, 0) : start + len(some) - 1]
            begins = spelling.ends_line[before]
            result[start : start + CHUNK] &= begins if start else np.append(True, begins)
    return result


def sorted_places(
    tokens: npt.NDArray[np.integer], is_wanted: npt.NDArray[np.bool_]
) -> Iterator[Places]:
    """Give the wanted places of tokens in the order of what follows them, some at a time."""
    if not len(tokens):
        return
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        raise DataError("an exact trace is built with: pip install pydivsufsort") from None
    width = max(1, (int(tokens.max()).bit_length() + 7) // 8)
    text = np.empty((len(tokens), width), np.uint8)
    for start in range(0, len(tokens), CHUNK):
        some = tokens[start : start + CHUNK].astype(np.uint32)
        for byte in range(width):
            text[start : start + CHUNK, byte] = some >> np.uint32(8 * (width - 1 - byte))
    order: npt.NDArray[np.int32] = divsufsort(text.reshape(-1))
    del text
    for start in range(0, len(order), CHUNK):
        places = order[start : start + CHUNK].view(np.uint32)
        if width > 1:
            places = places[places % np.uint32(width) == 0] // np.uint32(width)
        yield places[is_wanted[places]]
