import errno
import os

import numpy as np
import pyarrow as pa
import pytest

from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.documents import Documents

ONE = np.ones(1, np.int64)
SUFFIXES = ["bin", "idx", "provenance.arrow", "sha256"]


def one_document(token: int) -> Documents:
    return Documents(np.array([token], "<u2"), ONE, ONE, {"repo": pa.array([str(token)])})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_seen_only_when_all_are_published(tmp_path):
    with DatasetWriter(tmp_path / "a", "<u2", ["repo"]) as writer:
        writer.add(one_document(3))
        writer.complete()
        assert all(name.endswith(".tmp") for name in names(tmp_path))
        writer.publish()
        assert names(tmp_path) == [f"a.{suffix}" for suffix in SUFFIXES]
    assert names(tmp_path) == [f"a.{suffix}" for suffix in SUFFIXES]


@pytest.mark.parametrize("is_complete", [False, True])
def test_what_is_not_published_leaves_nothing(tmp_path, is_complete):
    with DatasetWriter(tmp_path / "a", "<u2", ["repo"]) as writer:
        writer.add(one_document(3))
        if is_complete:
            writer.complete()
    assert names(tmp_path) == []


def test_a_side_file_that_cannot_be_created_leaves_nothing_of_the_others(tmp_path):
    (tmp_path / "a.provenance.arrow.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        DatasetWriter(tmp_path / "a", "<u2", ["repo"])
    assert names(tmp_path) == ["a.provenance.arrow.tmp"]


def test_a_disk_that_is_full_for_the_index_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexedDatasetBuilder, "_write_pointers", fail)
    with (
        pytest.raises(OSError, match="No space"),
        DatasetWriter(tmp_path / "a", "<u2", ["repo"]) as writer,
    ):
        writer.add(one_document(3))
        writer.finalize()
    assert names(tmp_path) == []
