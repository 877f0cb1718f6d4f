"""The content of token files: what shows, what needs a checksum to show, and that size costs nothing."""

import os

import numpy as np
import pytest

from megatron.checksum import format_checksums, hash_file
from megatron.data.checksum import checksum_path
from megatron.data.content import BLOCK, NUM_BLOCKS, WHOLE, content_of
from megatron.data.indexed_dataset import HEADER, bin_path, idx_path
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.opened_file import PositionedReader
from megatron.errors import DataError


def write(prefix, num_documents=200, size=9):
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for document in range(num_documents):
            builder.add_document([document % 1000] * size)
        builder.finalize()
    return str(prefix)


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_every_byte_of_a_small_dataset_counts(tmp_path):
    prefix = write(tmp_path / "a", num_documents=4)
    checksum_path(prefix).unlink(missing_ok=True)
    before = content_of(prefix)
    for path in (bin_path(prefix), idx_path(prefix)):
        for place in range(path.stat().st_size):
            flip(path, place)
            assert not before.is_same(content_of(prefix))
            flip(path, place)
    assert before.is_same(content_of(prefix))


def test_a_name_and_a_folder_do_not_count(tmp_path):
    prefix = write(tmp_path / "a")
    before = content_of(prefix)
    (tmp_path / "there").mkdir()
    for path in tmp_path.glob("a.*"):
        path.rename(tmp_path / "there" / f"b{path.suffix}")
    after = content_of(tmp_path / "there" / "b")
    assert after == before and after.sha256 is not None


def test_in_a_large_index_one_length_shows_and_in_a_large_file_a_checksum_is_needed(tmp_path):
    prefix = write(tmp_path / "a", num_documents=60_000, size=20)
    assert min(path(prefix).stat().st_size for path in (bin_path, idx_path)) > WHOLE
    before = content_of(prefix)
    with IndexedDatasetBuilder(tmp_path / "b", np.uint16) as builder:  # ids as many, elsewhere cut
        for document in range(60_000):
            builder.add_document(
                [document % 1000] * (20 + (document == 501) - (document == 59_000))
            )
        builder.finalize()
    assert not before.is_same(content_of(tmp_path / "b"))
    step = (bin_path(prefix).stat().st_size - BLOCK) // (NUM_BLOCKS - 1)
    flip(bin_path(prefix), step + BLOCK + 100)  # behind the second block
    assert before.is_same(content_of(prefix))
    digests = {path.name: hash_file(path) for path in (bin_path(prefix), idx_path(prefix))}
    checksum_path(prefix).write_text(format_checksums(digests))
    assert not before.is_same(content_of(prefix))
    checksum_path(prefix).unlink()
    assert before.is_same(content_of(prefix))  # as far as can be told


def test_of_a_terabyte_no_more_is_read_than_of_a_few_megabytes(tmp_path, monkeypatch):
    for suffix in (".bin", ".idx"):
        with (tmp_path / f"a{suffix}").open("wb") as file:
            file.write(HEADER.pack(b"MMIDIDX\x00\x00", 1, 8, 0, 1))
            os.truncate(file.fileno(), 1 << 40)  # holes
    parts = []
    read = PositionedReader.read
    monkeypatch.setattr(
        PositionedReader, "read", lambda self, *part: parts.append(part) or read(self, *part)
    )
    content_of(tmp_path / "a")
    assert sum(num_bytes for _, num_bytes in parts) == 2 * NUM_BLOCKS * BLOCK
    assert parts[0][0] == 0 and parts[-1][0] == (1 << 40) - BLOCK


def test_a_damaged_checksum_file_is_an_error_that_says_what_to_do(tmp_path):
    prefix = write(tmp_path / "a")
    checksum_path(prefix).write_text("nothing\n")
    with pytest.raises(
        DataError, match=r"a\.sha256:1 is not a checksum .*or remove it to do without"
    ):
        content_of(prefix)
    checksum_path(prefix).write_text(f"{'0' * 64}  a.bin\n")  # of the .idx nothing
    assert content_of(prefix).sha256 is None
