"""Opt-out lists: what they name is excluded, and whatever could be left in unnoticed is said."""

import json
import logging
import random

import numpy as np
import pytest

from megatron.data import exclusion, provenance
from megatron.data.exclusion import exclude_documents
from megatron.data.exclusion_list import read_exclusion_list
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.provenance import ProvenanceWriter, provenance_path
from megatron.errors import DataError


def write(prefix, rows, fields=("repo", "path"), size=3):
    """Write documents of `size` tokens each, with a row of provenance for each; without if there are no fields."""
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for _ in rows:
            builder.add_document([1] * size)
        builder.finalize()
    if fields:
        writer = ProvenanceWriter(provenance_path(prefix), fields)
        writer.add({field: [row[field] for row in rows] for field in fields})
        writer.close()
    return IndexedDataset(prefix)


def write_list(folder, *lines, name="optout.jsonl"):
    path = folder / name
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


def excluded(found, prefix):
    return [n for start, stop in found.of(str(prefix)).tolist() for n in range(start, stop)]


ROWS = [
    {"repo": "a", "path": "x.py"},
    {"repo": "b", "path": "x.py"},
    {"repo": "b", "path": "ä b.py"},
    {"repo": None, "path": "x.py"},
    {"repo": "", "path": None},
    {"repo": "a", "path": "y.py"},
]


@pytest.fixture
def files(tmp_path):
    return {
        str(tmp_path / "py"): write(tmp_path / "py", ROWS),
        str(tmp_path / "js"): write(tmp_path / "js", ROWS[::-1]),
    }


@pytest.mark.parametrize(
    ("lines", "py", "js"),
    [
        ([{"repo": "a"}], [0, 5], [0, 5]),
        ([{"repo": "b", "path": "x.py"}], [1], [4]),
        ([{"path": "ä b.py"}, {"path": "y.py", "repo": "a"}], [2, 5], [0, 3]),
        ([{"repo": "b"}, {"repo": "b", "path": "x.py"}], [1, 2], [3, 4]),
        ([{"repo": None}], [3], [2]),  # null: the document had no such key
        ([{"repo": ""}], [4], [1]),
        ([{"path": None, "repo": ""}], [4], [1]),
        ([{"dataset": "py", "repo": "a"}], [0, 5], []),
        ([{"dataset": "js", "document": 2}, {"dataset": "js", "document": 0}], [], [0, 2]),
        ([{"repo": "A"}, {"repo": "a "}, {"path": "x"}], [], []),  # equal, not alike
    ],
)
def test_documents_of_which_all_fields_of_a_line_hold_are_excluded(tmp_path, files, lines, py, js):
    found = exclude_documents([write_list(tmp_path, *lines)], files)
    assert excluded(found, tmp_path / "py") == py
    assert excluded(found, tmp_path / "js") == js


def test_lists_add_up_and_each_has_its_hash(tmp_path, files):
    paths = [
        write_list(tmp_path, {"repo": "a"}, name="1.jsonl"),
        write_list(tmp_path, {"path": "x.py"}, name="2.jsonl"),
    ]
    found = exclude_documents(paths, files)
    assert excluded(found, tmp_path / "py") == [0, 1, 3, 5]
    # sha256sum of the line and its end
    assert found.sha256[0] == "5e00f27d62f2b9ee85e29560e2698820661d1d71b29b8ddbc8de7bd064a7d587"
    assert found.sha256[1] != found.sha256[0]


def test_no_list_excludes_nothing_and_opens_nothing(tmp_path):
    indexed = write(tmp_path / "a", ROWS)
    provenance_path(tmp_path / "a").write_bytes(b"damaged")
    found = exclude_documents([], {str(tmp_path / "a"): indexed})
    assert found.sha256 == () and excluded(found, tmp_path / "a") == []


def test_random_lists_agree_with_comparing_every_line_to_every_document(
    tmp_path, monkeypatch, caplog
):
    """Small batches, so that lines outnumber rows in some and documents spread over many."""
    for module in (provenance, exclusion):
        monkeypatch.setattr(module, "BATCH_ROWS", 16, raising=False)
    draw = random.Random(3)
    fields = ("a", "b", "c")

    def value():
        return draw.choice([None, "", "x", "y", "zz", "é"])

    rows = [{field: value() for field in fields} for _ in range(500)]
    indexed = write(tmp_path / "d", rows, fields)
    for trial in range(30):
        lines = [
            {field: value() for field in draw.sample(fields, draw.choice([1, 2, 3]))}
            for _ in range(draw.choice([1, 5, 60]))
        ]
        with caplog.at_level(logging.INFO, "megatron"):
            caplog.clear()
            path = write_list(tmp_path, *lines, name=f"{trial}.jsonl")
            found = exclude_documents([path], {str(tmp_path / "d"): indexed})
        expected = [
            number
            for number, row in enumerate(rows)
            if any(line.items() <= row.items() for line in lines)
        ]
        assert excluded(found, tmp_path / "d") == expected
        without = {
            json.dumps(line, sort_keys=True)
            for line in lines
            if not any(line.items() <= row.items() for row in rows)
        }
        assert (f"ATTENTION: {len(without)} of its {len(lines)}" in caplog.text) == bool(without)


def test_each_token_file_is_logged_with_what_each_list_excludes(tmp_path, files, caplog):
    one = write_list(tmp_path, {"repo": "b"}, name="1.jsonl")
    two = write_list(tmp_path, {"dataset": "py", "document": 1}, name="2.jsonl")
    with caplog.at_level(logging.INFO, "megatron"):
        exclude_documents([one, two], files)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/py: excluded 2 documents, 6 tokens by {one}; 1 documents, 3 tokens by {two}",
        f"{tmp_path}/js: excluded 2 documents, 6 tokens by {one}; 0 documents, 0 tokens by {two}",
    ]


def test_lines_that_name_nothing_are_counted_aloud(tmp_path, files, caplog):
    lines = [{"repo": "a"}, *({"repo": f"gone{number}"} for number in range(7))]
    path = write_list(tmp_path, *lines)
    with caplog.at_level(logging.INFO, "megatron"):
        exclude_documents([path], files)
    assert (
        f"{path}: ATTENTION: 7 of its 8 lines name no document of this run: lines 2, 3, 4, 5, 6, …"
        in caplog.text
    )


def test_numbers_are_compared_as_they_are_stored(tmp_path):
    indexed = write(tmp_path / "a", [{"stars": "5"}, {"stars": "50"}], ["stars"])
    found = exclude_documents([write_list(tmp_path, {"stars": 5})], {str(tmp_path / "a"): indexed})
    assert excluded(found, tmp_path / "a") == [0]


def check_refused(tmp_path, files, line, message, **options):
    with pytest.raises(DataError, match=message):
        exclude_documents([write_list(tmp_path, {"repo": "a"}, line)], files, **options)


def test_field_that_no_token_file_has_is_refused(tmp_path, files):
    check_refused(tmp_path, files, {"repoo": "a"}, r"optout\.jsonl:2: no token file .* 'repoo'")


def test_token_file_of_which_a_line_cannot_be_told_is_refused(tmp_path, files):
    files[str(tmp_path / "wiki")] = write(tmp_path / "wiki", ROWS, ["path"])
    check_refused(tmp_path, files, {"path": "x"}, r":1: .*wiki has no provenance field repo, so")
    files[str(tmp_path / "wiki")] = write(tmp_path / "wiki", ROWS, ())
    provenance_path(tmp_path / "wiki").unlink(missing_ok=True)
    check_refused(tmp_path, files, {"path": "x"}, r":1: .*wiki has no provenance field repo, so")


def test_token_file_may_be_passed_over_on_purpose(tmp_path, files):
    files[str(tmp_path / "wiki")] = write(tmp_path / "wiki", ROWS, ["path"])
    path = write_list(tmp_path, {"repo": "a"}, {"path": "ä b.py"})
    found = exclude_documents([path], files, skipped=["wiki"])
    assert excluded(found, tmp_path / "py") == [0, 2, 5]
    assert excluded(found, tmp_path / "wiki") == [2]  # what can be told is excluded all the same


def test_lines_for_one_token_file_ask_nothing_of_the_others(tmp_path, files):
    files[str(tmp_path / "wiki")] = write(tmp_path / "wiki", ROWS, ())
    path = write_list(tmp_path, {"dataset": "py", "repo": "a"})
    assert excluded(exclude_documents([path], files), tmp_path / "py") == [0, 5]


def test_token_file_that_the_run_does_not_read_is_refused_or_passed_over(tmp_path, files, caplog):
    line = {"dataset": "go", "document": 3}
    check_refused(tmp_path, files, line, r":2: this run reads no token file 'go'")
    check_refused(tmp_path, files, {"dataset": "go", "repo": "a"}, "no token file 'go'")
    with caplog.at_level(logging.INFO, "megatron"):
        path = write_list(tmp_path, {"repo": "a"}, line, {"dataset": "go", "lang": "go"})
        exclude_documents([path], files, skipped=["go"])
    assert "ATTENTION: 2 of its 3 lines name no document" in caplog.text


def test_name_that_two_token_files_share_is_refused_and_the_prefix_tells_them_apart(tmp_path):
    prefixes = [tmp_path / "one" / "py", tmp_path / "two" / "py"]
    for prefix in prefixes:
        prefix.parent.mkdir()
    files = {str(prefix): write(prefix, ROWS) for prefix in prefixes}
    check_refused(tmp_path, files, {"dataset": "py", "document": 1}, "give the whole prefix")
    found = exclude_documents(
        [write_list(tmp_path, {"dataset": str(prefixes[1]), "document": 1})], files
    )
    assert [excluded(found, prefix) for prefix in prefixes] == [[], [1]]


def test_whole_prefix_goes_before_the_last_part_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").mkdir()
    files = {prefix: write(prefix, ROWS) for prefix in ("py", "two/py")}
    found = exclude_documents([write_list(tmp_path, {"dataset": "py", "document": 1})], files)
    assert excluded(found, "py") == [1] and excluded(found, "two/py") == []


def test_document_beyond_the_last_is_refused(tmp_path, files):
    check_refused(tmp_path, files, {"dataset": "py", "document": 6}, r":2: .*py has no document 6")


def test_provenance_of_another_file_is_refused(tmp_path, files):
    write(tmp_path / "other", ROWS[:3])
    provenance_path(tmp_path / "other").replace(provenance_path(tmp_path / "py"))
    check_refused(tmp_path, files, {"repo": "b"}, "has 3 rows, and .* 6 documents")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"repo": "a"', "is not JSON"),
        (b"octocat/hello", "is not JSON"),
        (b'"octocat/hello"', "names no document; a line is an object"),
        (b"{}", "names no document"),
        (b'{"repo": "a\xff"}', "is not JSON"),
        (b'{"repo": "a", "repo": "b"}', "a key twice"),
        (b'{"repo" : "a", "path" : "b", "repo":"c"}', "a key twice"),
        (b'{"dataset": "py"}', "names all of py"),
        (b'{"dataset": 3, "repo": "a"}', '"dataset" is 3'),
        (b'{"document": 3}', "a document by number is"),
        (b'{"dataset": "py", "document": "3"}', "a document by number is"),
        (b'{"dataset": "py", "document": true}', "a document by number is"),
        (b'{"dataset": "py", "document": -1}', "a document by number is"),
        (b'{"dataset": "py", "document": 3, "repo": "a"}', "a document by number is"),
    ],
)
def test_malformed_line_is_named_with_its_place(tmp_path, line, message):
    path = tmp_path / "optout.jsonl"
    path.write_bytes(b'{"repo": "a"}\n\n' + line + b'\n{"repo": "b"}\n')
    with pytest.raises(DataError, match=message) as error:
        read_exclusion_list(path)
    assert f"{path}:3" in str(error.value)


def test_colons_in_values_are_no_keys(tmp_path):
    entries = read_exclusion_list_of(tmp_path, b'{"url": "https://x:80/a", "repo": "a:b:c"}')
    assert entries.num_lines == 1


def read_exclusion_list_of(tmp_path, content):
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    return read_exclusion_list(path)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_list_without_a_line_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="names no document"):
        read_exclusion_list_of(tmp_path, content)


def test_missing_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_exclusion_list(tmp_path / "none")
