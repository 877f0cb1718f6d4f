import itertools
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megatron.data.permutation import keyed_word, random_word, random_words
from megatron.data.preprocessing import documents as documents_module
from megatron.data.preprocessing import shuffle
from megatron.data.preprocessing.documents import Documents, join_documents
from megatron.data.preprocessing.shuffle import DocumentShuffler


def make_documents(start: int, stop: int) -> Documents:
    """Document i is one or two items of ids i, with its number as provenance."""
    counts = [1 + i % 2 for i in range(start, stop)]
    sizes = [(i * 7 + item) % 30 for i in range(start, stop) for item in range(1 + i % 2)]
    owners = np.repeat(np.arange(start, stop), counts)
    return Documents(
        np.repeat(owners, sizes).astype("<u2"),
        np.array(sizes, np.int64),
        np.array(counts, np.int64),
        {"name": pa.array([f"n{i}" if i % 3 else None for i in range(start, stop)], pa.utf8())},
    )


def as_rows(documents: Documents) -> list[tuple]:
    """(items, provenance) of each document, with plain Python."""
    rows, item, token = [], 0, 0
    for count, name in zip(
        documents.items_per_document, documents.provenance["name"].to_pylist(), strict=True
    ):
        items = []
        for size in documents.sizes[item : item + count]:
            items.append(documents.ids[token : token + size].tolist())
            token += size
        rows.append((items, name))
        item += count
    return rows


def shuffled(folder, count, seed, pieces=100, **options):
    with DocumentShuffler(folder, seed, **options) as shuffler:
        for start in range(0, count, pieces):
            shuffler.add(make_documents(start, min(start + pieces, count)))
        return [row for part in shuffler.in_order() for row in as_rows(part)]


def test_documents_come_in_the_order_of_their_random_bits(tmp_path):
    word = keyed_word(5, "shuffle documents")
    order = sorted(range(1000), key=lambda number: random_word(word, number))
    rows = as_rows(make_documents(0, 1000))
    assert shuffled(tmp_path, 1000, 5) == [rows[number] for number in order]


def test_the_order_does_not_depend_on_pieces_memory_or_levels(tmp_path):
    expected = shuffled(tmp_path, 300, 1)
    for pieces, gathered, limit in [(1, 100, 10**9), (13, 1, 1), (300, 3000, 200)]:
        options = {"gathered_bytes": gathered, "sorted_bytes": limit}
        assert shuffled(tmp_path, 300, 1, pieces, **options) == expected
    assert shuffled(tmp_path, 300, 2) != expected
    assert sorted(map(str, shuffled(tmp_path, 300, 2))) == sorted(map(str, expected))


def test_equal_bits_keep_the_order_of_the_input(tmp_path, monkeypatch):
    """Dealing ends when the bits do, so that documents that cannot be told apart are sorted together."""
    monkeypatch.setattr(
        shuffle, "random_words", lambda word, numbers: np.full(len(numbers), 77, np.uint64)
    )
    found = shuffled(tmp_path, 50, 1, gathered_bytes=10, sorted_bytes=10)
    assert found == as_rows(make_documents(0, 50))


def test_every_order_of_four_documents_is_as_likely(tmp_path):
    counts = {}
    for seed in range(2400):
        order = tuple(np.argsort(random_words(keyed_word(seed, "x"), np.arange(4))).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom: below 49.7 in 999 of 1,000 cases.
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 49.7


def test_files_have_no_names_and_are_freed(tmp_path):
    def num_open():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    with DocumentShuffler(tmp_path, 1, gathered_bytes=100) as shuffler:
        for start in range(0, 600, 100):
            shuffler.add(make_documents(start, start + 100))
        assert num_open() > before + 50
        assert list(tmp_path.iterdir()) == []
        parts = shuffler.in_order()
        next(parts)
    assert num_open() == before


@pytest.mark.parametrize(("count", "pieces"), [(100_000, 1000), (3000, 1)])
def test_memory_does_not_grow_with_the_number_of_tiny_documents(tmp_path, count, pieces):
    """Two ids and two short fields each: what a document takes beside its ids is many times these."""
    kinds = pa.array(["", "a", "bc", None])

    def make(start, stop):
        numbers = np.arange(start, stop)
        return Documents(
            np.repeat(numbers, 2).astype("<u2"),
            np.full(len(numbers), 2),
            np.ones(len(numbers), np.int64),
            {name: kinds.take(pa.array(numbers % 4)) for name in ("repo", "path")},
        )

    bounds = {"gathered_bytes": 200_000, "sorted_bytes": 400_000}
    before, arrow_peak, given = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    with DocumentShuffler(tmp_path, 1, **bounds) as shuffler:
        for start in range(0, count, pieces):
            shuffler.add(make(start, start + pieces))
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
        for part in shuffler.in_order():
            given += len(part)
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1] + arrow_peak
    tracemalloc.stop()
    assert given == count
    assert peak < 2_500_000


def test_random_words_are_those_taken_one_by_one():
    numbers = np.array([0, 1, 2**40, 2**62 - 1])
    assert random_words(99, numbers).tolist() == [random_word(99, int(n)) for n in numbers]


@pytest.mark.parametrize(("gathered", "short"), [(1 << 17, 64), (1 << 17, 0), (40, 64), (40, 0)])
@pytest.mark.parametrize("seed", range(5))
def test_taking_and_joining_are_those_of_lists(monkeypatch, seed, gathered, short):
    monkeypatch.setattr(documents_module, "GATHERED_VALUES", gathered)
    monkeypatch.setattr(documents_module, "SHORT_RUN", short)
    draw = random.Random(seed)
    documents = join_documents([make_documents(0, 20), make_documents(20, 33)])
    rows = as_rows(make_documents(0, 33))
    order = [draw.randrange(33) for _ in range(draw.randrange(40))]
    assert as_rows(documents.take(np.array(order, np.int64))) == [rows[i] for i in order]
    bounds = np.array([0, *sorted(draw.randrange(34) for _ in range(5)), 33])
    parts = [as_rows(part) for part in documents.cut(bounds)]
    assert parts == [rows[begin:end] for begin, end in itertools.pairwise(bounds.tolist())]
