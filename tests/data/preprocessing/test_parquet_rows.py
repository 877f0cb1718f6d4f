"""Text in whatever kind of column it lies, a few rows at a time, and what is refused."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron.curation.run.document import Document
from megatron.curation.run.record_io import PartSource
from megatron.data.preprocessing import parquet_rows
from megatron.data.preprocessing.document_reader import Part, load, plan_parts, read_chunks
from megatron.data.preprocessing.records import parse_chunk
from megatron.errors import DataError

TEXTS = ["a", None, "é", "a"]
COLUMNS = {
    "short offsets": pa.array(TEXTS),
    "long offsets": pa.array(TEXTS, pa.large_string()),
    "views": pa.array(TEXTS, pa.string_view()),
    "categories": pa.array(TEXTS).dictionary_encode(),
    "categories of long offsets": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    "bytes": pa.array([text and text.encode() for text in TEXTS], pa.binary()),
    "bytes, long offsets": pa.array([text and text.encode() for text in TEXTS], pa.large_binary()),
}


def write(file, **columns):
    pq.write_table(pa.table(columns), file)
    return file


def parse(path, key="content", fields=(), **kwargs):
    (part,) = plan_parts([path])
    return [parse_chunk(load(c), [key], fields) for c in read_chunks(part, [key], fields, **kwargs)]


@pytest.mark.parametrize("kind", COLUMNS)
def test_text_is_read_from_a_column_of_any_kind_of_strings(tmp_path, kind):
    path = write(tmp_path / "a.parquet", content=COLUMNS[kind], lang=COLUMNS["categories"])
    (records,) = parse(path, fields=["lang"])
    assert records.texts["content"] == ["a", "é", "a"]
    assert records.fields["lang"] == ["a", "é", "a"]
    reason = "key 'content' is not a string"
    assert [(bad.number, bad.reason) for bad in records.bad] == [(2, reason)]


@pytest.mark.parametrize("kind", COLUMNS)
def test_text_is_read_from_inside_of_a_struct_by_its_path(tmp_path, kind):
    inside = pa.StructArray.from_arrays([COLUMNS[kind], pa.array([1, 2, 3, 4])], ["text", "size"])
    path = write(tmp_path / "a.parquet", content=inside)
    (records,) = parse(path, "content.text", ["content.size"])
    assert records.texts["content.text"] == ["a", "é", "a"]
    assert records.fields["content.size"] == ["1", "3", "4"]
    source = PartSource(Part(path, 0, path.stat().st_size), "content.text", "content.size")
    first, second, *_ = source.read()
    assert first == Document("1", "a", {"content": {}})
    assert second.reason == "no text under 'content.text'"


def test_a_name_with_a_dot_is_a_name_first(tmp_path):
    inside = pa.array([{"text": "inner"}])
    path = write(tmp_path / "a.parquet", **{"content": inside, "content.text": ["outer"]})
    assert parse(path, "content.text")[0].texts["content.text"] == ["outer"]


def test_a_column_of_nulls_alone_gives_bad_records_and_no_error(tmp_path):
    (records,) = parse(write(tmp_path / "a.parquet", content=pa.nulls(3)))
    assert records.num_read == len(records.bad) == 3
    none = pa.DictionaryArray.from_arrays(pa.nulls(3, pa.int32()), pa.array([], pa.string()))
    (records,) = parse(write(tmp_path / "a.parquet", content=none))
    assert records.num_read == len(records.bad) == 3


def test_bytes_that_are_not_utf8_are_a_bad_record(tmp_path):
    for column in (pa.array([b"a", b"\xff"]), pa.array([b"a", b"\xff"]).dictionary_encode()):
        (records,) = parse(write(tmp_path / "a.parquet", content=column))
        assert records.texts["content"] == ["a"]
        assert [bad.reason for bad in records.bad] == ["not UTF-8"]


@pytest.mark.parametrize(
    "column, said",
    [
        (pa.array([1]), "holds int64, not strings$"),
        (pa.array([["a"]]), "holds list<element: string>, not strings$"),
        (
            pa.array([{"text": "a", "n": 1}]),
            "holds struct<.*>, not strings; name one inside of it: content.text$",
        ),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, column, said):
    with pytest.raises(DataError, match=rf"a\.parquet: column 'content' {said}"):
        parse(write(tmp_path / "a.parquet", content=column))


def test_a_list_of_files_without_their_text_says_where_the_text_is(tmp_path):
    """The columns of The Stack v2, which holds names of texts."""
    path = write(tmp_path / "a.parquet", blob_id=["3c5"], path=["a.py"], repo_name=["a/b"])
    with pytest.raises(DataError, match=r"has blob_id, path, repo_name\. Like The Stack v2"):
        parse(path)
    with pytest.raises(DataError, match=r"has no column 'path\.x'"):
        parse(path, "path.x")


def test_categories_are_decoded_a_megabyte_at_a_time(tmp_path):
    """2,000 rows that name two texts of 300 kB: 600 MB of text in a file of a few kB."""
    draw = random.Random(1)
    texts = ["a" * 300_000, "b" * 300_000]
    numbers = [draw.choice([0, 1, None]) for _ in range(2000)]
    column = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(texts))
    (part,) = plan_parts([write(tmp_path / "a.parquet", content=column)])
    found, largest = [], 0
    for chunk in read_chunks(part, ["content"]):
        largest = max(largest, len(chunk.data))
        found += [text[0] for text in parse_chunk(chunk, ["content"]).texts["content"]]
    assert largest < 2 * parquet_rows.READ_BYTES
    assert found == ["ab"[number] for number in numbers if number is not None]


def test_of_a_row_that_is_too_long_only_its_size_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.data.preprocessing.document_reader.CHUNK_BYTES", 100)
    texts = ["a", "b" * 101, "c" * 100, "d" * 500, "e" * 101]
    inside = pa.array([{"text": text} for text in texts])
    path = write(tmp_path / "a.parquet", content=texts, inside=inside, n=[1, 2, 3, 4, 5])
    for key in ("content", "inside.text"):
        found = parse(path, key, ["n"], max_record_bytes=10)
        assert [text for one in found for text in one.texts[key]] == ["a", "c" * 100]
        assert [number for one in found for number in one.fields["n"]] == ["1", "3"]
        assert [bad.reason for one in found for bad in one.bad] == ["too long"] * 3
        (part,) = plan_parts([path])
        chunks = [*read_chunks(part, [key], max_record_bytes=10)]
        assert [chunk.num_skipped_bytes for chunk in chunks] == [101, 500, 101]
        assert sum(chunk.num_bytes for chunk in chunks) == path.stat().st_size


def test_a_chunk_of_categories_has_its_own_texts_alone(tmp_path):
    """Not the whole dictionary, here 30 MB."""
    draw = random.Random(1)
    texts = pa.array([draw.randbytes(500).hex() for _ in range(30_000)]).dictionary_encode()
    path = write(tmp_path / "a.parquet", content=texts)
    (part,) = plan_parts([path])
    sizes = [len(chunk.data) for chunk in read_chunks(part, ["content"]) if len(chunk.data)]
    assert sum(sizes) < 35e6 and max(sizes) < 2 * parquet_rows.READ_BYTES


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"content": [f"text {n}" for n in range(5000)]}), path, write_page_checksum=True
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is not a whole Parquet file .*CRC") as found:
        parse(path)
    assert "\n" not in str(found.value)
