import numpy as np
import pyarrow as pa
import pytest

from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.permutation import keyed_word, random_word
from megatron.data.preprocessing import documents as documents_module
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.documents import Documents, read_documents
from megatron.data.preprocessing.merge import list_prefixes, merge, merge_shuffled, open_sources
from megatron.data.provenance import Provenance
from megatron.errors import DataError

SUFFIXES = ("bin", "idx", "provenance.arrow")


def write(prefix, numbers, *, fields=("name",), dtype="<u2"):
    """Document i is i % 4 + 1 ids i, the last of them an item of its own in odd documents."""
    with DatasetWriter(prefix, dtype, fields) as writer:
        for i in numbers:
            sizes = [i % 4, 1] if i % 2 else [i % 4 + 1]
            writer.add(
                Documents(
                    np.full(i % 4 + 1, i, dtype),
                    np.array(sizes),
                    np.array([len(sizes)]),
                    {field: pa.array([f"{field} {i}"]) for field in fields},
                )
            )
        writer.finalize()
    return prefix


def read(prefix):
    """(ids of each item, name) of every document."""
    dataset = IndexedDataset(prefix)
    dataset.verify()
    provenance = Provenance.open(prefix, num_documents=dataset.num_documents)
    items = dataset.document_items
    return [
        (
            [dataset[item].tolist() for item in range(items[i], items[i + 1])],
            provenance.row(i)["name"] if provenance else None,
        )
        for i in range(dataset.num_documents)
    ]


def contents(prefix):
    return [prefix.with_name(f"{prefix.name}.{suffix}").read_bytes() for suffix in SUFFIXES]


def shard(tmp_path, number, count, name="a"):
    return tmp_path / f"{name}_{number:05d}-of-{count:05d}"


def names_in(inputs, output):
    return [prefix.name for prefix in list_prefixes(inputs, output)]


def test_shards_merge_to_the_whole_byte_for_byte(tmp_path):
    write(tmp_path / "s/whole", range(100))
    for number, numbers in enumerate([range(40), range(0), range(40, 41), range(41, 100)], 1):
        write(shard(tmp_path / "s", number, 4), numbers)
    prefixes = list_prefixes([tmp_path / "s/a"], tmp_path / "merged")
    copied = []
    merged = merge(
        open_sources(prefixes, drop_provenance=False), tmp_path / "merged", on_bytes=copied.append
    )
    assert contents(tmp_path / "merged") == contents(tmp_path / "s/whole")
    assert (merged.num_documents, merged.num_tokens) == (100, 250)
    assert sum(copied) == 500


@pytest.mark.parametrize("slice_bytes", [1, 50, 10**6])
def test_a_shuffled_merge_is_the_order_of_the_seed(tmp_path, monkeypatch, slice_bytes):
    monkeypatch.setattr(documents_module, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(documents_module, "BATCH_ROWS", 65_536)
    prefixes = [write(tmp_path / "a", range(30)), write(tmp_path / "b", range(30, 50))]
    told = []
    merge_shuffled(
        open_sources(prefixes, drop_provenance=False), tmp_path / "o", 3, on_bytes=told.append
    )
    word = keyed_word(3, "shuffle documents")
    order = sorted(range(50), key=lambda number: random_word(word, number))
    rows = read(tmp_path / "a") + read(tmp_path / "b")
    assert read(tmp_path / "o") == [rows[number] for number in order]
    assert sum(told) == 2 * IndexedDataset(tmp_path / "o").tokens.nbytes


def test_reading_documents_gives_all_of_them_across_batches_of_rows(tmp_path):
    count = 70_000
    with DatasetWriter(tmp_path / "a", "<u2", ["name"]) as writer:
        numbers = np.arange(count)
        writer.add(
            Documents(
                (numbers % 60_000).astype("<u2"),
                np.ones(count, np.int64),
                np.ones(count, np.int64),
                {"name": pa.array(numbers.astype(str))},
            )
        )
        writer.finalize()
    dataset = IndexedDataset(tmp_path / "a")
    parts = list(read_documents(dataset, Provenance.open(tmp_path / "a", num_documents=count)))
    assert np.concatenate([part.ids for part in parts]).tolist() == dataset.tokens.tolist()
    names = [name for part in parts for name in part.provenance["name"].to_pylist()]
    assert names == [str(number) for number in range(count)]


def test_folders_are_taken_as_people_count_and_without_the_output(tmp_path):
    for name in ("part10", "part2", "part1", "out"):
        write(tmp_path / name, range(2))
    assert names_in([tmp_path], tmp_path / "out") == ["part1", "part2", "part10"]
    with pytest.raises(DataError, match="part2 comes twice"):
        list_prefixes([tmp_path, tmp_path / "part2"], tmp_path / "out")


def test_shards_are_found_by_the_name_of_the_whole_by_folder_and_on_several_nodes(tmp_path):
    for number in range(1, 13):
        write(shard(tmp_path / f"node{number % 3}", number, 12), range(1))
    nodes = [tmp_path / f"node{i}" for i in range(3)]
    expected = [shard(tmp_path, number, 12).name for number in range(1, 13)]
    assert names_in(nodes, tmp_path / "a") == expected
    assert names_in([node / "a" for node in nodes], tmp_path / "a") == expected
    with pytest.raises(DataError, match="4 of 12 shards"):
        list_prefixes(nodes[:2], tmp_path / "a")
    write(shard(tmp_path / "node0", 1, 12), range(1))
    with pytest.raises(DataError, match="the same shard"):
        list_prefixes(nodes, tmp_path / "a")


def test_a_folder_of_shards_and_others_is_refused(tmp_path):
    for number in (1, 2):
        write(shard(tmp_path, number, 2), range(1))
    write(tmp_path / "b", range(1))
    with pytest.raises(DataError, match=r"shards of a beside other.*--input .*/a$"):
        list_prefixes([tmp_path], tmp_path / "out")
    assert len(names_in([tmp_path], tmp_path / "b")) == 2  # b is the output
    mixed = [shard(tmp_path, 1, 2), tmp_path / "b", shard(tmp_path, 2, 2)]
    with pytest.raises(DataError, match="1 of 2 shards"):
        list_prefixes(mixed, tmp_path / "out")


def test_a_stale_whole_is_not_taken_for_its_shards(tmp_path):
    for number in (1, 2):
        write(shard(tmp_path, number, 2), range(1))
    whole = write(tmp_path / "a", range(1))
    with pytest.raises(DataError, match=r"/a is a dataset, and .*/a_00001-of-00002 is a shard"):
        list_prefixes([whole], tmp_path / "out")
    expected = [shard(tmp_path, number, 2).name for number in (1, 2)]
    assert names_in([whole], whole) == names_in([tmp_path], whole) == expected
    (tmp_path / "a.idx").unlink()
    (tmp_path / "a.bin").unlink()
    assert names_in([whole], tmp_path / "out") == expected


def test_datasets_that_do_not_go_together_are_refused(tmp_path):
    a = write(tmp_path / "a", range(3))
    wide = write(tmp_path / "wide", range(3), dtype="<i4")
    with pytest.raises(DataError, match=r"holds int32 ids, .* uint16"):
        open_sources([a, wide], drop_provenance=False)
    for name, fields in [("none", ()), ("other", ("path", "name"))]:
        other = write(tmp_path / name, range(3), fields=fields)
        with pytest.raises(DataError, match=r"provenance of .*same --provenance-keys, or merge wi"):
            open_sources([a, other], drop_provenance=False)
        merge(
            open_sources([a, other], drop_provenance=True), tmp_path / "m", on_bytes=lambda n: None
        )
        assert [name for _, name in read(tmp_path / "m")] == [None] * 6


def test_only_empty_shards_are_no_dataset(tmp_path):
    prefixes = [write(shard(tmp_path, number, 2), range(0)) for number in (1, 2)]
    with pytest.raises(DataError, match="no document in"):
        merge(open_sources(prefixes, drop_provenance=False), tmp_path / "m", on_bytes=print)
    assert not list(tmp_path.glob("m*"))


MERGES = [merge, lambda *args, **kwargs: merge_shuffled(*args, 1, **kwargs)]


@pytest.mark.parametrize("function", MERGES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_not_sealed_with_new_checksums(tmp_path, suffix, function):
    prefixes = [write(tmp_path / "a", range(30)), write(tmp_path / "b", range(30))]
    path = tmp_path / f"b.{suffix}"
    damaged = bytearray(path.read_bytes())
    place = damaged.rindex(b"name 29") + 5 if suffix == "provenance.arrow" else len(damaged) // 2
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(
        DataError, match=rf"b\.{suffix} is damaged: .*what .*b\.sha256 says; copy it"
    ):
        function(open_sources(prefixes, drop_provenance=False), tmp_path / "m", on_bytes=id)
    assert not list(tmp_path.glob("m*"))


def test_checksums_that_do_not_name_a_file_are_refused(tmp_path):
    a = write(tmp_path / "a", range(30))
    (tmp_path / "a.sha256").write_text("")
    with pytest.raises(DataError, match="cut short"):
        open_sources([a], drop_provenance=False)
    (tmp_path / "a.sha256").write_text("0" * 64 + "  other.bin\n")
    with pytest.raises(DataError, match=r"a\.sha256 does not name .*a\.idx"):
        merge(open_sources([a], drop_provenance=False), tmp_path / "m", on_bytes=id)


def test_datasets_without_checksums_are_named_and_taken(tmp_path, caplog):
    prefixes = [write(tmp_path / name, range(3)) for name in ("a", "b")]
    (tmp_path / "b.sha256").unlink()
    with caplog.at_level("WARNING", "megatron"):
        merge(open_sources(prefixes, drop_provenance=False), tmp_path / "m", on_bytes=id)
    (message,) = caplog.messages
    assert message.startswith("1 of 2 datasets have no checksums") and message.endswith("/b")
    assert len(read(tmp_path / "m")) == 6


def test_a_damaged_index_is_found_before_anything_is_published(tmp_path):
    a = write(tmp_path / "a", range(30))
    damaged = bytearray((tmp_path / "a.idx").read_bytes())
    damaged[34 + 20] ^= 1
    (tmp_path / "a.idx").write_bytes(damaged)
    (tmp_path / "a.sha256").unlink()
    for function in MERGES:
        with pytest.raises(DataError, match="damaged"):
            function(open_sources([a], drop_provenance=False), tmp_path / "m", on_bytes=print)
    assert not list(tmp_path.glob("m*"))
