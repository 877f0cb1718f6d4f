import numpy as np
import pytest

from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.origin import join_origins, origin_path, read_origin
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.merge import merge, open_sources
from megatron.errors import DataError

ORIGIN = {"tokenizer": "t1", "append_eod": True, "input": [["a.jsonl", 5]], "shard": None}


def write(prefix, origin):
    with DatasetWriter(prefix, "<u2", (), origin) as writer:
        writer.builder.add_document(np.array([1, 2]))
        writer.finalize()
    return prefix


def shards(tmp_path, second):
    prefixes = [tmp_path / f"a_0000{i}-of-00002" for i in (1, 2)]
    write(prefixes[0], ORIGIN | {"shard": "1/2"})
    write(prefixes[1], second)
    return prefixes


def test_shards_of_one_run_have_the_origin_of_the_whole(tmp_path):
    prefixes = shards(tmp_path, ORIGIN | {"shard": "2/2"})
    merge(open_sources(prefixes, drop_provenance=False), tmp_path / "m", on_bytes=id)
    assert read_origin(tmp_path / "m") == ORIGIN


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "t2"}, "tokenizer is t1 and t2"),
        ({"append_eod": False}, "append_eod is True and False"),
        ({"input": [["b.jsonl", 5]]}, r"input is .*a\.jsonl.* and .*b\.jsonl"),
        ({"other": 1}, "other is None and 1"),
    ],
)
def test_shards_of_different_runs_are_refused_naming_both_values(tmp_path, changed, message):
    prefixes = shards(tmp_path, ORIGIN | {"shard": "2/2"} | changed)
    sources = open_sources(prefixes, drop_provenance=False)
    with pytest.raises(DataError, match=message):
        merge(sources, tmp_path / "m", on_bytes=id)
    assert not list(tmp_path.glob("m*"))


def test_a_shard_without_an_origin_is_of_another_run(tmp_path):
    with pytest.raises(DataError, match=r"00002-of-00002 has no .*origin\.json"):
        join_origins(shards(tmp_path, None))


def test_other_datasets_need_only_the_same_tokenizer_where_they_say_it(tmp_path):
    a, b = write(tmp_path / "a", ORIGIN), write(tmp_path / "b", ORIGIN | {"append_eod": False})
    silent = write(tmp_path / "c", None)
    assert join_origins([a, b]) == {"tokenizer": "t1"}
    assert join_origins([a, silent, b]) is None
    other = write(tmp_path / "d", ORIGIN | {"tokenizer": "t2"})
    with pytest.raises(DataError, match="tokenizer is t1 and t2"):
        join_origins([silent, a, other])


def test_an_origin_that_is_not_json_is_refused_and_a_stale_one_removed(tmp_path):
    prefix = write(tmp_path / "a", ORIGIN)
    origin_path(prefix).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_origin(prefix)
    with IndexedDatasetBuilder(prefix, "<u2") as builder:
        builder.add_document([1])
        builder.finalize()
    assert read_origin(prefix) is None
