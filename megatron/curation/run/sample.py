"""Where a dry run looks: many small places, spread over all of the input by size, and how much each stands for.

Plain files and folders are read at any byte. What is compressed, or Parquet, can only be read from its beginning on: it
is read through, without parsing, and some of the records on the way are taken. All that is read through is LOOK_THROUGH
times of what is taken at most. Knows nothing of stages.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from megatron.curation.run.document import Document
from megatron.curation.run.record_io import BadRecord, PartSource, Source
from megatron.data.preprocessing.document_reader import CHUNK_BYTES, Chunk

NUM_PLACES = 500  # at most, so that opening files is not what takes the time
PLACE_BYTES = 1 << 15  # of input at each, at least
LOOK_THROUGH = 50
GOLDEN_RATIO = 0.6180339887498949  # its multiples lie evenly between 0 and 1


@dataclass
class Place:
    """The records that start in a stretch of a shard, and what the stretch is of it.

    Units are bytes, of lines or files, or rows. num_bytes is known when all places are given.
    """

    items: list[Document | BadRecord] = field(default_factory=list)
    num_units: float = 0.0  # of the stretch
    item_units: float = 0.0  # of what starts in it, and may end outside
    is_bytes: bool = True
    seconds: float = 0.0  # that reading these took
    num_bytes: float = 0.0  # of input that the stretch is
    times: float = 1.0  # that it was chosen

    def add(self, other: Place) -> None:
        """Take the records of another stretch of the shard as well."""
        self.items += other.items
        self.num_units += other.num_units
        self.item_units += other.item_units
        self.is_bytes = other.is_bytes
        self.seconds += other.seconds
        self.num_bytes += other.num_bytes


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
        streamed = sum(self.shards[n].num_bytes for n in targets if not self.shards[n].is_seekable)
        part = min(LOOK_THROUGH * self.num_wanted / max(streamed, 1), 1.0)
        size = self.num_wanted / self.num_places
        num_read = 0.0
        for number, offsets in targets.items():
            shard = self.shards[number]
            if isinstance(shard, PartSource) and not shard.is_seekable:
                num_read += yield from _on_the_way(shard, len(offsets), size, part)
            else:
                yield from (_at(shard, int(offset), int(size)) for offset in offsets)
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


def _whole(shard: Source) -> Iterator[Place]:
    """Give all of a shard, about a chunk at a time."""
    if isinstance(shard, PartSource) and not shard.is_seekable:
        for chunk, seconds in _timed(shard):
            place = _taken(shard, chunk)
            yield replace(place, num_bytes=chunk.num_bytes, seconds=place.seconds + seconds)
        return
    for start in range(0, max(shard.num_bytes, 1), CHUNK_BYTES):
        yield _between(shard, start, min(start + CHUNK_BYTES, shard.num_bytes))


def _at(shard: Source, offset: int, size: int) -> Place:
    """Give the records that start in a stretch of a shard, which goes on at its beginning behind its end."""
    stop = offset + min(size, shard.num_bytes)
    place = _between(shard, offset, min(stop, shard.num_bytes))
    if stop > shard.num_bytes:
        place.add(_between(shard, 0, stop - shard.num_bytes))
    return place


def _between(shard: Source, start: int, stop: int) -> Place:
    """Read the records that start in a stretch of a shard."""
    stretch = shard.between(start, stop)
    place = Place(num_units=stop - start, num_bytes=stop - start)
    if isinstance(stretch, PartSource):
        for chunk, seconds in _timed(stretch):
            found = _taken(stretch, chunk)
            place.items += found.items
            place.item_units += found.item_units
            place.seconds += seconds + found.seconds
        return place
    begin = time.perf_counter()
    place.items += stretch.read()
    place.seconds = time.perf_counter() - begin
    place.item_units = stretch.num_bytes
    return place


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
    for number, (chunk, seconds) in enumerate(_timed(shard)):
        units = _num_units(chunk)
        done += chunk.num_bytes
        if not step and units:
            step = units / chunk.num_bytes * shard.num_bytes * part / times
            stretch = min(units / chunk.num_bytes * size, step)
            next_place = step * GOLDEN_RATIO
        if units and next_place < num_units + units:
            count = int((num_units + units - 1 - next_place) // step) + 1
            share = min(count * stretch / units, 1.0)
            # Shifted, or the first of many places in a chunk would always lie near its beginning.
            begin = ((next_place - num_units) / units + number * GOLDEN_RATIO) % 1
            place = _around(shard, chunk, begin, share)
            place.times = count
            place.seconds += seconds * share
            given.append(place)
            yield place
            next_place += count * step
        num_units += units
        if part < 1 and done >= shard.num_bytes * part:
            break
    # The step was guessed from the first chunk, so these may be more places than were wanted, or fewer.
    found = sum(place.times for place in given) / times
    for place in given:
        place.times /= found
        place.num_bytes = done * place.num_units / num_units
    return done


def _around(shard: PartSource, chunk: Chunk, begin: float, share: float) -> Place:
    """Give the records that start in a stretch of a chunk, which goes on at its beginning behind its end.

    Or what is at the beginning were never met, and that is where lines are that are longer than a chunk.
    """
    place = _taken(shard, chunk, begin, min(begin + share, 1.0))
    if begin + share > 1:
        place.add(_taken(shard, chunk, 0.0, begin + share - 1))
    return place


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
