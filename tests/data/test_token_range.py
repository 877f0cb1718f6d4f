"""Excluded documents leave no trace in the sequence of tokens, and every position is found past them."""

import itertools
import random

import numpy as np
import pytest

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.token_range import NO_RUNS, TokenRange, clip_runs, join_runs, token_positions


def write(prefix, sizes):
    """Write documents of which token i of the file is number i."""
    with IndexedDatasetBuilder(prefix, np.int32) as builder:
        start = 0
        for size in sizes:
            builder.add_document(np.arange(start, start + size))
            start += size
        builder.finalize()
    return IndexedDataset(prefix)


def runs_of(documents):
    """Give a set of numbers as runs, one number at a time."""
    return join_runs(np.array([[d, d + 1] for d in documents], np.int64).reshape(-1, 2))


def test_runs_join_to_what_they_cover():
    draw = random.Random(1)
    for _ in range(300):
        pairs = [[a, a + draw.randrange(5)] for a in draw.choices(range(40), k=draw.randrange(12))]
        joined = join_runs(np.array(pairs, np.int64).reshape(-1, 2))
        covered = {number for start, stop in pairs for number in range(start, stop)}
        assert [n for start, stop in joined.tolist() for n in range(start, stop)] == sorted(covered)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(joined))


def test_runs_are_clipped_to_a_range():
    runs = np.array([[0, 3], [5, 9], [12, 20]])
    assert clip_runs(runs, range(2, 13)).tolist() == [[2, 3], [5, 9], [12, 13]]
    assert clip_runs(runs, range(3, 5)).tolist() == []


@pytest.mark.parametrize("seed", range(40))
def test_positions_are_those_of_the_kept_documents_in_order(tmp_path, seed):
    """Against the plain way: a list of all tokens of the documents that are kept."""
    draw = random.Random(seed)
    sizes = [draw.choice([0, 0, 1, 2, 7]) for _ in range(30)]
    indexed = write(tmp_path / "a", sizes)
    first, last = sorted(draw.choices(range(31), k=2))
    excluded = {d for d in range(30) if draw.random() < draw.choice([0.1, 0.5, 0.9])}
    view = TokenRange(indexed, range(first, last), runs_of(excluded))
    kept = [document for document in range(first, last) if document not in excluded]
    expected = [
        token
        for document in kept
        for token in range(indexed.document_start(document), indexed.document_start(document + 1))
    ]
    assert (view.num_documents, view.num_tokens) == (len(kept), len(expected))
    for start in range(len(expected) + 1):
        for stop in {start, min(start + 1, len(expected)), min(start + 9, len(expected))}:
            tokens = view.read(start, stop)
            assert tokens.tolist() == expected[start:stop] and tokens.dtype == np.int64
            pieces = view.pieces(start, stop)
            assert [token for piece in pieces for token in piece] == expected[start:stop]
            # As few pieces as there are: neighbours in the file are one.
            assert all(len(piece) > 0 for piece in pieces)
            assert all(a.stop < b.start for a, b in itertools.pairwise(pieces))
    for token in range(indexed.num_tokens):
        places = [place for part in view.positions(token, token + 1) for place in part]
        assert places == [place for place, kept_one in enumerate(expected) if kept_one == token]
    whole = [place for part in view.positions(0, indexed.num_tokens) for place in part]
    assert whole == list(range(len(expected)))


def test_positions_of_documents_are_those_found_one_by_one(tmp_path):
    indexed = write(tmp_path / "a", [3, 0, 5, 0, 0])
    documents = np.arange(6)
    assert token_positions(indexed, documents).tolist() == [
        indexed.document_start(document) for document in range(6)
    ]
    empty = write(tmp_path / "b", [])
    assert token_positions(empty, np.array([[0, 0]])).tolist() == [[0, 0]]


def test_without_exclusions_nothing_grows_with_the_file(tmp_path):
    view = TokenRange(write(tmp_path / "a", [2] * 1000), range(1000), NO_RUNS)
    assert view._ends.size == view._shifts.size == 1
