"""Parts of a file come back whole, or there is an error that says why."""

import os

import pytest

from megatron.data.opened_file import PositionedReader, map_file, page_by_page
from megatron.errors import DataError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    return path


def test_any_part_is_read(path):
    reader = PositionedReader(path)
    assert reader.num_bytes == 100
    for start, size in [(0, 100), (7, 3), (99, 1), (50, 0), (0, 1)]:
        assert reader.read(start, size) == bytes(range(start, start + size))


def test_file_that_was_cut_after_it_was_opened_is_an_error(path):
    reader = PositionedReader(path)
    os.truncate(path, 40)
    assert reader.read(10, 30) == bytes(range(10, 40))
    with pytest.raises(DataError, match="ends at byte 40 and had 100 when it was opened"):
        reader.read(30, 20)


def test_file_that_is_replaced_is_read_as_it_was(path):
    reader = PositionedReader(path)
    path.with_name("new").write_bytes(b"x" * 100)
    path.with_name("new").replace(path)
    assert reader.read(5, 3) == b"\x05\x06\x07"


def test_what_cannot_be_opened_is_named(tmp_path, path):
    for opened in (PositionedReader, map_file):
        with pytest.raises(DataError, match="missing does not exist; a dataset is given by its"):
            opened(tmp_path / "missing")
        with pytest.raises(DataError, match="cannot be read: Is a directory"):
            opened(tmp_path)
    assert bytes(map_file(path)) == bytes(range(100))


def test_empty_file_is_mapped_as_nothing(tmp_path):
    (tmp_path / "empty").touch()
    assert map_file(tmp_path / "empty") == b""


def test_reading_page_by_page_changes_nothing_but_cost(tmp_path, path):
    (tmp_path / "empty").touch()
    for file, content in ((path, bytes(range(100))), (tmp_path / "empty", b"")):
        mapped = map_file(file)
        with page_by_page(mapped):
            assert bytes(mapped) == content
        assert bytes(mapped) == content
