from pathlib import Path

import pytest

from megatron.data.shards import Shard, natural_key, order_shards, split_name
from megatron.errors import ConfigError, DataError


def test_shards_are_given_as_i_of_n():
    assert Shard.parse("3/8") == Shard(3, 8)
    for text in ("0/8", "9/8", "3", "3/", "-1/8", "3/8/1", "a/b"):
        with pytest.raises(ConfigError, match="from 1/8 to 8/8"):
            Shard.parse(text)


def test_a_name_says_its_shard():
    name = Shard(3, 12).name("data/py_text_document")
    assert name == "data/py_text_document_00003-of-00012"
    assert split_name(Path(name)) == (Path("data/py_text_document"), Shard(3, 12))
    assert split_name(Path("data/py_text_document")) is None


def test_shards_are_ordered_by_number_wherever_they_lie():
    prefixes = [Path(f"node{20 - i}/{Shard(i, 12).name('a')}") for i in range(1, 13)]
    assert order_shards(prefixes[5:] + prefixes[:5]) == prefixes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_00001-of-00003", "a_00003-of-00003"], "1 of 3 shards .* are missing: 2/3;"),
        (["a_00001-of-00009"], "missing: 2/9, 3/9, 4/9, 5/9, 6/9 …;"),
        (["x/a_00001-of-00001", "y/a_00001-of-00001"], "the same shard"),
        (["a_00001-of-00001", "a_00001-of-00002", "a_00002-of-00002"], "one of 1 shards"),
    ],
)
def test_missing_doubled_and_mixed_shards_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        order_shards([Path(name) for name in names])


def test_names_sort_as_people_count():
    names = ["part10", "part2", "part1b", "part1", "other"]
    assert sorted(map(Path, names), key=natural_key) == [
        Path(name) for name in ["other", "part1", "part1b", "part2", "part10"]
    ]
