import hashlib
import io
import itertools
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from megatron.data.indexed_dataset import IndexedDataset, id_dtype
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.errors import DataError
from tests.megatron_core import run_megatron_core

DOCUMENTS = [[5, 0, 65499], [7], list(range(300)), [1, 2]]


def write(prefix: Path, documents=DOCUMENTS, dtype="<u2") -> Path:
    with IndexedDatasetBuilder(prefix, dtype) as builder:
        for ids in documents:
            builder.add_document(ids)
        builder.finalize()
    return prefix


def packed_index(sizes: list[int], code: int, width: int, starts: list[int]) -> bytes:
    """The .idx by the description of the format, with struct alone."""
    pointers = [width * sum(sizes[:i]) for i in range(len(sizes))]
    return (
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, code, len(sizes), len(starts))
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + struct.pack(f"<{len(sizes)}q", *pointers)
        + struct.pack(f"<{len(starts)}q", *starts)
    )


@pytest.mark.parametrize(("dtype", "code", "letter"), [("<u2", 8, "H"), ("<i4", 4, "i")])
def test_files_are_those_of_the_format_description(tmp_path, dtype, code, letter):
    write(tmp_path / "a", dtype=dtype)
    flat = [token for ids in DOCUMENTS for token in ids]
    width = struct.calcsize(letter)
    assert (tmp_path / "a.bin").read_bytes() == struct.pack(f"<{len(flat)}{letter}", *flat)
    sizes = [len(ids) for ids in DOCUMENTS]
    assert (tmp_path / "a.idx").read_bytes() == packed_index(sizes, code, width, [0, 1, 2, 3, 4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.sha256"]


def test_megatron_core_reads_ours_and_writes_the_same_bytes(tmp_path):
    write(tmp_path / "ours")
    with IndexedDatasetBuilder(tmp_path / "sentences", "<i4") as builder:
        builder.add_items(np.arange(6), [1, 2, 3], [2, 1])
        builder.finalize()
    script = """
import json, sys
import numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, DType
folder = sys.argv[1]
found = {}
for name in ("ours", "sentences"):
    dataset = IndexedDataset(f"{folder}/{name}")
    found[name] = [dataset[i].tolist() for i in range(len(dataset))]
    found[name + "_documents"] = dataset.document_indices.tolist()
    builder = IndexedDatasetBuilder(f"{folder}/{name}_theirs.bin", dtype=dataset.index.dtype)
    for first, last in zip(dataset.document_indices, dataset.document_indices[1:]):
        items = [dataset[i] for i in range(first, last)]
        builder.add_document(torch.tensor(numpy.concatenate(items).astype("i8")), [len(i) for i in items])
    builder.finalize(f"{folder}/{name}_theirs.idx")
found["dtypes"] = [DType.optimal_dtype(n).__name__ for n in (65499, 65500, None)]
print(json.dumps(found))
"""
    found = json.loads(run_megatron_core(script, str(tmp_path)).splitlines()[-1])
    assert found["ours"] == DOCUMENTS
    assert found["ours_documents"] == [0, 1, 2, 3, 4]
    assert found["sentences"] == [[0], [1, 2], [3, 4, 5]]
    assert found["sentences_documents"] == [0, 2, 3]
    for name in ("ours", "sentences"):
        for suffix in ("bin", "idx"):
            theirs = (tmp_path / f"{name}_theirs.{suffix}").read_bytes()
            assert theirs == (tmp_path / f"{name}.{suffix}").read_bytes()
        assert len(IndexedDataset(tmp_path / f"{name}_theirs")) == len(found[name])
    assert found["dtypes"] == [id_dtype(n).name for n in (65499, 65500, None)]


def test_reads_whole_items_parts_and_across_documents(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "a"))
    assert len(dataset) == dataset.num_documents == 4
    assert [dataset[i].tolist() for i in range(4)] == DOCUMENTS == [d.tolist() for d in dataset]
    assert dataset.get(2, 10, 3).tolist() == [10, 11, 12]
    assert dataset.get(2, 299).tolist() == [299]
    assert dataset.tokens[2:6].tolist() == [65499, 7, 0, 1]
    assert dataset.num_tokens == 306
    for arguments in [(4,), (-1,), (1, 0, 2), (1, 2), (0, -1, 1)]:
        with pytest.raises(IndexError):
            dataset.get(*arguments)


def test_finds_the_document_of_every_token_with_empty_and_split_documents(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", "<u2") as builder:
        builder.add_items(np.arange(9), [0, 2, 3, 0, 4], [1, 2, 0, 2])
        builder.finalize()
    dataset = IndexedDataset(tmp_path / "a")
    assert [dataset.document_start(i) for i in range(5)] == [0, 0, 5, 5, 9]
    assert [dataset.document_at(token) for token in range(9)] == [1] * 5 + [3] * 4


def test_pickles_as_its_prefix(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "a", [[1] * 100_000]))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.tolist() == dataset.tokens.tolist()


def test_empty_dataset_opens(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "a", []))
    dataset.verify()
    assert (len(dataset), dataset.num_documents, dataset.num_tokens) == (0, 0, 0)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_every_truncation_and_extension_is_named(tmp_path, suffix):
    path = write(tmp_path / "a").with_suffix(f".{suffix}")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.(bin|idx) "):
            IndexedDataset(tmp_path / "a")
    path.write_bytes(whole + b"\0")
    with pytest.raises(DataError, match=str(len(whole) + 1)):
        IndexedDataset(tmp_path / "a")


def test_every_changed_byte_of_header_and_end_entries_is_an_error_at_opening(tmp_path):
    path = write(tmp_path / "a").with_suffix(".idx")
    whole = path.read_bytes()
    n = len(DOCUMENTS)
    last_size, last_pointer = 34 + 4 * (n - 1), 34 + 4 * n + 8 * (n - 1)
    ends = [*range(last_size, last_size + 4), *range(last_pointer, last_pointer + 8)]
    ends += [*range(34 + 12 * n, 34 + 12 * n + 8), *range(len(whole) - 8, len(whole))]
    ends += range(34 + 4 * n, 34 + 4 * n + 8)  # the first pointer
    for position in [*range(34), *ends]:
        for flip in (1, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(DataError):
                IndexedDataset(tmp_path / "a")


def test_a_header_with_any_other_byte_is_an_error(tmp_path):
    path = write(tmp_path / "a").with_suffix(".idx")
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position, value in itertools.product(range(34), range(256)):
            if value != whole[position]:
                os.pwrite(file.fileno(), bytes([value]), position)
                with pytest.raises(DataError):
                    IndexedDataset(tmp_path / "a")
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    IndexedDataset(tmp_path / "a")


def test_without_a_single_id_every_type_of_ids_means_the_same(tmp_path):
    path = write(tmp_path / "a", []).with_suffix(".idx")
    whole = path.read_bytes()
    accepted = set()
    for code in range(256):
        path.write_bytes(whole[:17] + bytes([code]) + whole[18:])
        try:
            assert len(IndexedDataset(tmp_path / "a")) == 0
        except DataError:
            continue
        accepted.add(code)
    assert accepted == {1, 4, 5, 8}


def test_counts_that_are_wrong_together_are_an_error(tmp_path):
    """Two items less and three documents more make an index of the same length."""
    path = write(tmp_path / "a").with_suffix(".idx")
    whole = path.read_bytes()
    for items in (-4, -2, 2):
        counts = struct.pack("<QQ", len(DOCUMENTS) + items, len(DOCUMENTS) + 1 - 3 * items // 2)
        path.write_bytes(whole[:18] + counts + whole[34:])
        with pytest.raises(DataError):
            IndexedDataset(tmp_path / "a")


def test_verify_finds_every_changed_byte_of_the_index(tmp_path):
    path = write(tmp_path / "a").with_suffix(".idx")
    whole = path.read_bytes()
    IndexedDataset(tmp_path / "a").verify()
    document_entries = 34 + 12 * len(DOCUMENTS)
    for position in range(len(whole)):
        # A low bit of a document's first item may give another valid division into documents.
        flip = 1 if position < document_entries else 0x80
        damaged = bytearray(whole)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            IndexedDataset(tmp_path / "a").verify()


def test_verify_finds_a_negative_size_with_matching_pointers(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(12))
    (tmp_path / "a.idx").write_bytes(packed_index([3, -1, 4], 8, 2, [0, 1, 2, 3]))
    with pytest.raises(DataError, match="item 1 has size -1"):
        IndexedDataset(tmp_path / "a").verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"TNTIDX\0\0" + bytes(40), "old 'lazy'/'cached' format"),
        (b"PK\x03\x04" + bytes(40), "not a Megatron index"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 2, 8, 0, 1) + bytes(8), "version 2"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 7, 0, 1) + bytes(8), "type code 7"),
    ],
)
def test_another_format_is_named(tmp_path, content, message):
    (tmp_path / "a.idx").write_bytes(content)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        IndexedDataset(tmp_path / "a")


def test_missing_file_says_that_a_prefix_is_meant(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(DataError, match=r"without \.bin and \.idx"):
        IndexedDataset(tmp_path / "a.bin")


def test_nothing_is_published_before_finalize_and_nothing_left_by_abort(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", "<u2") as builder:
        builder.add_document([1])
        assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.idx"))
    assert not list(tmp_path.iterdir())


def test_an_older_dataset_is_replaced_and_kept_until_then(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a.bin.tmp").write_bytes(b"left by a killed process")
    with IndexedDatasetBuilder(tmp_path / "a", "<i4") as builder:
        builder.add_document([70_000])
        assert IndexedDataset(tmp_path / "a").num_documents == 4
        builder.finalize()
    assert IndexedDataset(tmp_path / "a").tokens.tolist() == [70_000]


def test_checksums_are_those_of_the_files(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", "<u2") as builder:
        ids = np.arange(3000)
        for start in range(50):
            ids[:] = np.arange(start, start + 3000)  # what was added may change afterwards
            builder.add_document(ids)
        (tmp_path / "side").write_bytes(b"provenance")
        builder.complete([(tmp_path / "side", tmp_path / "a.provenance.arrow")])
        builder.publish()
    names = ["a.bin", "a.idx", "a.provenance.arrow"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "a.sha256"]
    lines = (tmp_path / "a.sha256").read_text().splitlines()
    for line, name in zip(lines, names, strict=True):
        assert line == f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}"


def test_a_dataset_without_provenance_replaces_one_that_has_it(tmp_path):
    for has_provenance in (True, False):
        with IndexedDatasetBuilder(tmp_path / "a", "<u2") as builder:
            builder.add_document([1])
            (tmp_path / "side").write_bytes(b"provenance")
            side = (tmp_path / "side", tmp_path / "a.provenance.arrow")
            builder.complete([side] if has_provenance else [])
            builder.publish()
        assert (tmp_path / "a.provenance.arrow").exists() == has_provenance


def test_two_writers_of_one_prefix_are_refused(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", "<u2") as first:
        with pytest.raises(DataError, match="another process"):
            IndexedDatasetBuilder(tmp_path / "a", "<u2")
        first.add_document([1])
        first.finalize()
    assert IndexedDataset(tmp_path / "a").tokens.tolist() == [1]


def test_an_id_that_does_not_fit_is_an_error_not_a_wrapped_number(tmp_path):
    with IndexedDatasetBuilder(tmp_path / "a", "<u2") as builder:
        for ids in ([65_536], np.array([-1])):
            with pytest.raises(DataError, match="do not fit uint16"):
                builder.add_document(ids)


def test_merging_equals_writing_all_documents(tmp_path):
    write(tmp_path / "a", DOCUMENTS[:2])
    with IndexedDatasetBuilder(tmp_path / "b", "<u2") as builder:
        builder.add_items(np.arange(6), [1, 2, 3], [2, 1])
        builder.finalize()
    with IndexedDatasetBuilder(tmp_path / "merged", "<u2") as builder:
        builder.add_dataset(IndexedDataset(tmp_path / "a"))
        builder.add_dataset(IndexedDataset(tmp_path / "b"))
        builder.finalize()
    with IndexedDatasetBuilder(tmp_path / "whole", "<u2") as builder:
        ids = np.array([*DOCUMENTS[0], *DOCUMENTS[1], *range(6)])
        builder.add_items(ids, [3, 1, 1, 2, 3], [1, 1, 2, 1])
        builder.finalize()
    for suffix in (".bin", ".idx"):
        merged, whole = (tmp_path / f"{name}{suffix}" for name in ("merged", "whole"))
        assert merged.read_bytes() == whole.read_bytes()
    with (
        pytest.raises(DataError, match="uint16 ids"),
        IndexedDatasetBuilder(tmp_path / "c", "<i4") as builder,
    ):
        builder.add_dataset(IndexedDataset(tmp_path / "a"))


def test_offsets_beyond_two_to_the_31_are_exact(tmp_path):
    """Three items of 2^30 + 1 two-byte ids, in a sparse file: the pointers pass 2^31 and 2^32."""
    size = 2**30 + 1
    (tmp_path / "a.idx").write_bytes(packed_index([size] * 3, 8, 2, [0, 1, 2, 3]))
    with (tmp_path / "a.bin").open("wb") as file:
        file.seek(2 * 3 * size - 2)
        file.write(struct.pack("<H", 9))
    dataset = IndexedDataset(tmp_path / "a")
    dataset.verify()
    assert [dataset.document_start(i) for i in range(4)] == [0, size, 2 * size, 3 * size]
    assert dataset.get(2, size - 1).tolist() == [9]
    assert dataset.document_at(3 * size - 1) == 2
    with IndexedDatasetBuilder(tmp_path / "b", "<u2") as builder:
        builder._sizes.write(dataset.sizes.tobytes())
        index = io.BytesIO()
        builder._write_pointers(index)
    assert index.getvalue() == struct.pack("<3q", 0, 2 * size, 4 * size)
