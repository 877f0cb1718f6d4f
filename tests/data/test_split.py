"""The data options are read as Megatron and BigCode read them, and mistakes are named."""

from fractions import Fraction
from itertools import pairwise

import pytest

from megatron.data.split import Share, Span, read_data_options
from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig


def read(**options):
    return read_data_options(DataConfig(seq_length=8, **options))


def sources(group):
    return [(source.prefix, source.weight) for source in group.sources]


def spans(group):
    return [(source.part.start, source.part.end) for source in group.sources]


def megatron_split(split, size):
    """Megatron's rule, spelled as it stands there: sizes rounded, then all ends moved by what the last is off."""
    splits = [float(s) for s in split.split(",")]
    splits = [s / sum(splits) for s in splits]
    ends = [0]
    for share in splits:
        ends.append(ends[-1] + round(share * float(size)))
    difference = ends[-1] - size
    return [0] + [end - difference for end in ends[1:]]


def test_one_path_is_cut_by_default_as_megatron_cuts():
    plan = read(data_path=("data/py",))
    assert sources(plan.train) == [("data/py", 1)]
    parts = [plan.train, *plan.valid, *plan.test]
    assert [group.name for group in parts] == ["train", "valid", "test"]
    documents = [group.sources[0].part.documents(1000) for group in parts]
    assert documents == [range(969), range(969, 999), range(999, 1000)]
    assert [group.is_by_default for group in parts] == [False, True, True]


@pytest.mark.parametrize(
    "split", ["969,30,1", "98,1,1", "1,1,1", "0.9,0.05,0.05", "90,10,0", "7,2,4"]
)
def test_split_rounds_as_megatron(split):
    for size in [*range(20, 200), 12_345, 10**9 + 1]:
        ends = megatron_split(split, size)
        shares = tuple(float(number) for number in split.split(","))
        got = [Share(shares, number).documents(size) for number in range(3)]
        assert got == [range(*pair) for pair in pairwise(ends)]


def test_split_of_few_documents_covers_them_once():
    for shares in [(969, 30, 1), (1, 1, 1), (5, 5, 0), (1, 0, 1)]:
        for size in range(20):
            parts = [Share(shares, number).documents(size) for number in range(3)]
            assert [document for part in parts for document in part] == list(range(size))


def test_several_paths_carry_exact_weights():
    plan = read(data_path=("0.3", "a", "7e-1", "b"), split="8/1/1")
    assert sources(plan.train) == [("a", Fraction(3, 10)), ("b", Fraction(7, 10))]
    assert sources(plan.valid[0]) == sources(plan.train)
    assert not plan.valid[0].is_by_default


def test_part_of_no_share_is_no_set():
    plan = read(data_path=("a",), split="95,5")
    assert [group.name for group in plan.valid] == ["valid"] and plan.test == ()


def test_each_set_may_have_paths_of_its_own():
    plan = read(train_data_path=("1", "a", "3", "b"), valid_data_path=("c",))
    assert sources(plan.train) == [("a", 1), ("b", 3)]
    assert sources(plan.valid[0]) == [("c", 1)] and plan.test == ()
    assert plan.valid[0].sources[0].part.documents(7) == range(7)


def test_weighted_groups_are_read():
    plan = read(
        train_weighted_split_paths=("TRAIN: 0.25 0:0.95 data/a b/py, 3 0.1:1 data/c:d",),
        valid_weighted_split_paths=("python: 1 0.95:1 data/a b/py", "java:1 0:1 data/java"),
    )
    assert plan.train.name == "TRAIN"
    assert sources(plan.train) == [("data/a b/py", Fraction(1, 4)), ("data/c:d", 3)]
    assert spans(plan.train) == [(0.0, 0.95), (0.1, 1.0)]
    assert [group.name for group in plan.valid] == ["python", "java"]


def test_span_rounds_each_end():
    assert Span(0.0, 0.95).documents(1010) == range(960)  # 959.5 to even
    assert Span(0.95, 1.0).documents(1010) == range(960, 1010)


@pytest.mark.parametrize(
    "content",
    [
        '"A: 1 0:1 a" "B: 1 0:1 b, 2 0:0.5 c"\n',  # BigCode's form
        '"A: 1 0:1 a"\n"B: 1 0:1 b, 2 0:0.5 c"',
        "# sets\n\nA: 1 0:1 a\nB: 1 0:1 b, 2 0:0.5 c\n",
    ],
)
def test_groups_are_read_from_a_file(tmp_path, content):
    path = tmp_path / "valid.txt"
    path.write_text(content)
    plan = read(train_data_path=("t",), valid_weighted_split_paths_path=str(path))
    assert [group.name for group in plan.valid] == ["A", "B"]
    assert sources(plan.valid[1]) == [("b", 1), ("c", 2)] and spans(plan.valid[1]) == [
        (0, 1),
        (0, 0.5),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_path": ("0.5", "a", "b")}, r"--data-path .* it has 3 words: 0\.5 a b"),
        ({"data_path": ("a", "b")}, "'a' stands where a weight is expected"),
        ({"data_path": ("nan", "b")}, "'nan' stands where a weight"),
        ({"data_path": ("0", "b")}, "number above 0"),
        ({"data_path": ("1", "a.bin")}, r"--data-path: a\.bin .* give their prefix, a$"),
        ({"data_path": ("a",), "split": "9;1"}, "--split '9;1' is not up to three numbers"),
        ({"data_path": ("a",), "split": "1,1,1,1"}, "not up to three numbers"),
        ({"data_path": ("a",), "split": "1,-1,0"}, "not up to three numbers"),
        ({"data_path": ("a",), "split": "0,1,0"}, "leaves nothing to train on"),
        (
            {"data_path": ("a",), "valid_data_path": ("b",)},
            "--valid-data-path names the valid set, and --data-path with --split names all three",
        ),
        (
            {"train_data_path": ("a",), "train_weighted_split_paths": ("T: 1 0:1 a",)},
            "--train-data-path and --train-weighted-split-paths both name the train set",
        ),
        (
            {"train_weighted_split_paths": ("A: 1 0:1 a", "B: 1 0:1 b")},
            "exactly one group, and 2 are given: A, B",
        ),
        ({"train_weighted_split_paths": ("T:", "1", "0:1", "a")}, "put quotes around each group"),
        (
            {"train_weighted_split_paths": ("T: 1 0:1",)},
            "group T: '1 0:1' is not W START:END PREFIX",
        ),
        ({"train_weighted_split_paths": ("T: 1 0:1 a, 2 0.5 b",)}, "group T: '2 0.5 b' is not"),
        ({"train_weighted_split_paths": ("T: 1 0:1 a, b",)}, "'b' is not W .* cannot hold a comma"),
        ({"train_weighted_split_paths": ("T: 1 0:x a",)}, "'1 0:x a' is not"),
        (
            {"train_weighted_split_paths": ("T: 1 0.5:0.5 a",)},
            r"0\.5:0\.5 .* 0 <= START < END <= 1",
        ),
        ({"train_weighted_split_paths": ("T: 1 0:95 a",)}, "0:95 .* 0 <= START < END <= 1"),
        ({"train_weighted_split_paths": ("T: -1 0:1 a",)}, "group T: '-1' stands where a weight"),
        ({"train_weighted_split_paths": ("T: 1 0:1 a.idx",)}, r"group T: a\.idx is one of"),
        (
            {"train_data_path": ("a",), "valid_weighted_split_paths": ("V: 1 0:1 a", "V: 1 0:1 b")},
            "two valid sets have the same name: V, V",
        ),
        ({"valid_data_path": ("a",)}, "exactly one group, and 0 are given: none"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        read(**options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"A: 1 0:1 a" B: 1 0:1 b\n', r"line 1: 'B: 1 0:1 b' stands outside of quotes"),
        ('# comment\n"A: 1 0:1 a\n', "line 2: .* stands outside of quotes"),
        ("A: 1 0:1 a\nB: 1 0:1\n", r"line 2, group B: '1 0:1' is not"),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "sets.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(train_data_path=("t",), valid_weighted_split_paths_path=str(path))


def test_file_of_groups_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt, which should hold weighted groups"):
        read(train_weighted_split_paths_path=str(tmp_path / "nowhere.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt holds no group"):
        read(train_weighted_split_paths_path=str(tmp_path / "empty.txt"))
