"""Where a dry run looks: many small places, spread over all of the input by size, and how much each stands for.

A plain file is read at any byte. What is compressed, Parquet, or a shard of files can only be read from its beginning on:
it is read through, without parsing, and some of the records on the way are taken. All that is read through is
LOOK_THROUGH times of what is taken at most. Knows nothing of stages.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from megatron.curation.run.document import Document, num_bytes
from megatron.curation.run.record_io import BadRecord, PartSource, Source
from megatron.data.preprocessing.document_reader import Chunk, is_plain

NUM_PLACES = 500  # at most, so that opening files is not what takes the time
PLACE_BYTES = 1 << 15  # of input at each, at least
LOOK_THROUGH = 50
GOLDEN_RATIO = 0.6180339887498949  # its multiples lie evenly between 0 and 1


@dataclass
class Place:
    """The records that start in a stretch of a shard, and what the stretch is of it.

    Units are bytes of lines, or rows, or bytes of files. num_bytes is known when all places are given.
    """

    items: list[Document | BadRecord]
    num_units: float  # of the stretch
    item_units: float  # of what starts in it, and may end outside
    is_lines: bool
    seconds: float = 0.0  # that reading these took
    num_bytes: float = 0.0  # of input that the stretch is
    times: int = 1  # that it was chosen


@dataclass
class Sample:
    """Places of an input, given one after the other; read_part is known at the end."""

    shards: Sequence[Source]
    num_wanted: float
    input_bytes: int = field(init=False)
    num_places: int = field(init=False)  # wanted
    read_part: float = 1.0  # of what has no other beginning and was chosen

    def __post_init__(self) -> None:
        self.input_bytes = sum(shard.num_bytes for shard in self.shards)
        self.num_places = int(min(max(self.num_wanted // PLACE_BYTES, 1), NUM_PLACES))

    @property
    def is_whole(self) -> bool:
        """Say whether the sample is all there is."""
        return self.num_wanted >= self.input_bytes

    def __iter__(self) -> Iterator[Place]:
        if self.is_whole:
            for shard in self.shards:
                yield from _whole(shard)
            return
        targets = self._targets()
        streamed = sum(
            self.shards[n].num_bytes for n in targets if not _is_seekable(self.shards[n])
        )
        part = min(LOOK_THROUGH * self.num_wanted / max(streamed, 1), 1.0)
        size = self.num_wanted / self.num_places
        num_read = 0.0
        for number, offsets in targets.items():
            shard = self.shards[number]
            if not isinstance(shard, PartSource):
                place = _beginning(shard, size, len(offsets))
                num_read += place.num_bytes
                yield place
            elif _is_seekable(shard):
                yield from (_at(shard, offset, size) for offset in offsets)
            else:
                num_read += yield from _on_the_way(shard, len(offsets), size, part)
        self.read_part = num_read / streamed if streamed else 1.0

    def _targets(self) -> dict[int, list[float]]:
        """Give offsets in shards, one in each of equal stretches of the input.

        Where in a stretch differs, so that an order of the input that repeats itself is not met in step.
        """
        found: dict[int, list[float]] = {}
        number, before = 0, 0
        for place in range(self.num_places):
            position = (place + place * GOLDEN_RATIO % 1) * self.input_bytes / self.num_places
            while position >= before + self.shards[number].num_bytes:
                before += self.shards[number].num_bytes
                number += 1
            found.setdefault(number, []).append(position - before)
        return found


def _is_seekable(shard: Source) -> bool:
    return isinstance(shard, PartSource) and is_plain(shard.part.path)


def _whole(shard: Source) -> Iterator[Place]:
    """Give all of a shard, a chunk at a time, or a file."""
    if isinstance(shard, PartSource):
        for chunk, seconds in _timed(shard):
            place = _taken(shard, chunk)
            yield replace(place, num_bytes=chunk.num_bytes, seconds=place.seconds + seconds)
        return
    for item in shard.read():
        size = num_bytes(item.text) if isinstance(item, Document) else 0
        yield Place([item], size, size, False, num_bytes=size)


def _beginning(shard: Source, size: float, times: int) -> Place:
    """Give the first documents of a shard that can only be read as a whole."""
    place = Place([], 0, 0, False, times=times)
    start = time.perf_counter()
    for item in shard.read():
        place.items.append(item)
        place.num_units += num_bytes(item.text) if isinstance(item, Document) else 0
        if place.num_units >= size * times:
            break
    place.seconds = time.perf_counter() - start
    place.item_units = place.num_bytes = place.num_units
    return place


def _at(shard: PartSource, offset: float, size: float) -> Place:
    """Give the records that start in a stretch of a plain file."""
    part = shard.part
    start = max(min(part.start + int(offset), part.stop - int(size)), part.start)
    stretch = replace(part, start=start, stop=min(start + int(size), part.stop))
    whole = Place([], shard.num_bytes, 0, True)
    for chunk, seconds in _timed(replace(shard, part=stretch)):
        found = _taken(shard, chunk)
        whole.items += found.items
        whole.item_units += found.item_units
        whole.seconds += seconds + found.seconds
    whole.num_units = whole.num_bytes = stretch.stop - stretch.start
    return whole


def _on_the_way(
    shard: PartSource, times: int, size: float, part: float
) -> Generator[Place, None, int]:
    """Read through a part of a file, and give some records at about so many places equally far from each other.

    Returns the bytes of the file that were read.

    Equally far in what was read, not on disk, where a part that is easily compressed would be nowhere.
    """
    given: list[Place] = []
    done = num_units = 0
    step = stretch = next_place = 0.0  # units
    for chunk, seconds in _timed(shard):
        units = _num_units(chunk)
        done += chunk.num_bytes
        if not step and units:
            step = units / chunk.num_bytes * shard.num_bytes * part / times
            stretch = min(units / chunk.num_bytes * size, step)
            next_place = step * GOLDEN_RATIO
        if units and next_place < num_units + units:
            count = int((num_units + units - 1 - next_place) // step) + 1
            share = min(count * stretch / units, 1.0)
            begin = min((next_place - num_units) / units, 1 - share)
            place = _taken(shard, chunk, begin, begin + share)
            place.times = count
            place.seconds += seconds * share
            given.append(place)
            yield place
            next_place += count * step
        num_units += units
        if part < 1 and done >= shard.num_bytes * part:
            break
    found = (
        sum(place.times for place in given) / times
    )  # about 1: the step was guessed from the first chunk
    for place in given:
        place.num_bytes = done * place.num_units / max(num_units, 1) * found
    return done


def _num_units(chunk: Chunk) -> int:
    """Count the rows, or the bytes of lines."""
    if not chunk.is_arrow or not len(chunk.data):
        return len(chunk.data) + (chunk.num_skipped_bytes if not chunk.is_arrow else 0)
    import pyarrow

    rows: int = pyarrow.ipc.open_stream(pyarrow.py_buffer(chunk.data)).read_next_batch().num_rows
    return rows


def _timed(shard: PartSource) -> Iterator[tuple[Chunk, float]]:
    """Give chunks and the seconds that reading each took."""
    chunks = shard.chunks()
    while True:
        start = time.perf_counter()
        chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk, time.perf_counter() - start


def _taken(shard: PartSource, chunk: Chunk, begin: float = 0.0, end: float = 1.0) -> Place:
    """Give the records of a chunk that start in a part of it, from 0 to 1."""
    start = time.perf_counter()
    if chunk.is_arrow:
        rows = [item for item in shard.records_of(chunk) if item is not None]
        first = int(begin * len(rows))
        items = rows[first : max(round(end * len(rows)), first + 1)]
        share = len(items) / max(len(rows), 1)
        place = Place(items, len(items), len(items), False)
        place.seconds = (time.perf_counter() - start) * share
        return place
    data = bytes(chunk.data)
    first, last = (_line_start(data, int(part * len(data))) for part in (begin, end))
    part = replace(
        chunk, data=data[first:last], num_skipped_bytes=chunk.num_skipped_bytes * (end == 1)
    )
    items = [item for item in shard.records_of(part) if item is not None]
    units = last - first + part.num_skipped_bytes
    place = Place(items, (end - begin) * len(data) + part.num_skipped_bytes, units, True)
    place.seconds = time.perf_counter() - start
    return place


def _line_start(data: bytes, position: int) -> int:
    """Give where the first line starts at or after a position; the end if none does."""
    if position == 0:
        return 0
    return data.find(b"\n", position - 1) + 1 or len(data)
