import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron.data.document_reader import (
    check_inputs,
    load,
    plan_parts,
    read_chunks,
    read_text,
)
from megatron.data.records import parse_chunk
from megatron.errors import DataError

ROWS = [{"text": f"document {i} \u00e9\n" * (i % 50), "n": i} for i in range(1000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write(path, content: bytes = LINES):
    """Write lines as the suffix says; .zst and .gz in two frames, as concatenated files are."""
    half = content.index(b"\n", len(content) // 2) + 1
    parts = [content[:half], content[half:]]
    if path.suffix == ".gz":
        content = b"".join(gzip.compress(part) for part in parts)
    elif path.suffix == ".zst":
        content = b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
    elif path.suffix == ".parquet":
        table = pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])
        pq.write_table(table, path, row_group_size=300)
        return path
    path.write_bytes(content)
    return path


def read(path, keys=("text",), **kwargs):
    (part,) = plan_parts([path])
    chunks = [load(chunk) for chunk in read_chunks(part, keys, **kwargs)]
    return [parse_chunk(chunk, keys) for chunk in chunks if len(chunk.data)]


def texts_of(parts, key="text", **kwargs):
    """The texts of some parts, in order."""
    return [
        text
        for part in parts
        for chunk in read_chunks(part, [key], **kwargs)
        for text in parse_chunk(load(chunk), [key]).texts[key]
    ]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.v1.jsonl.zst", "a.json.zst", "a.parquet"]
)
@pytest.mark.parametrize("max_records", [None, 7])
def test_every_container_gives_the_same_texts_in_order(tmp_path, name, max_records):
    path = write(tmp_path / name)
    parsed = read(path, max_records=max_records)
    assert [text for part in parsed for text in part.texts["text"]] == [r["text"] for r in ROWS]
    assert max_records is None or max(part.num_read for part in parsed) <= max_records
    (part,) = plan_parts([path])
    sizes = [chunk.num_bytes for chunk in read_chunks(part, ["text"], max_records=max_records)]
    assert sum(sizes) == path.stat().st_size
    assert min(sizes) >= 0


def test_each_unusable_record_is_reported_with_its_place_and_reason(tmp_path):
    lines = [b'{"text": "good", "b": ""}', b"", b"{cut", b'["list"]', b"3", b"null", b'{"b": "x"}']
    lines += [b'{"text": 5, "b": "x"}', b'{"text": null, "b": "x"}', b'{"text": "\xff", "b": "x"}']
    lines += [b'{"text": "no b"}', b" \t", b'{"b": "y", "text": "last without a line end"}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    (records,) = read(path, ("text", "b"))
    assert records.texts == {"text": ["good", "last without a line end"], "b": ["", "y"]}
    assert (records.num_read, records.num_blank) == (13, 2)
    assert [(bad.number, bad.reason) for bad in records.bad] == [
        (3, "not JSON"),
        (4, "not a JSON object"),
        (5, "not a JSON object"),
        (6, "not a JSON object"),
        (7, "no key 'text'"),
        (8, "key 'text' is not a string"),
        (9, "key 'text' is not a string"),
        (10, "not UTF-8"),
        (11, "no key 'b'"),
    ]


def test_a_missing_value_in_parquet_is_a_bad_record(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    (records,) = read(tmp_path / "a.parquet")
    assert records.texts["text"] == ["a", "b"]
    assert [(bad.number, bad.reason) for bad in records.bad] == [(2, "key 'text' is not a string")]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.999])
def test_a_file_cut_short_is_an_error_not_its_end(tmp_path, name, fraction):
    path = write(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=r"a\.(jsonl|parquet)"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_another_kind_than_its_name_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_inputs_that_cannot_be_read_are_named_before_anything_starts(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.docx").write_text("x")
    for name, message in [
        ("missing.jsonl", "does not exist"),
        ("empty.jsonl", "is empty"),
        ("notes.docx", "no known kind"),
        (".", "is a folder"),
    ]:
        with pytest.raises(DataError, match=message):
            check_inputs([write(tmp_path / "good.jsonl"), tmp_path / name])
    check_inputs([tmp_path / "notes.docx"], allow_text=True)


def test_wrong_columns_and_json_arrays_are_named(tmp_path):
    with pytest.raises(DataError, match="has no column 'content'; it has text, n"):
        read(write(tmp_path / "a.parquet"), ["content"])
    with pytest.raises(DataError, match="column 'n' holds int64"):
        read(tmp_path / "a.parquet", ["n"])
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(DataError, match="one JSON array"):
        read(tmp_path / "a.json")


def test_plain_text_comes_in_whole_lines(tmp_path):
    text = "a line of text\r\n" * 200_000 + "no end \u00e9"
    (tmp_path / "a.txt").write_bytes(text.encode())
    pieces = [piece for piece, _ in read_text(tmp_path / "a.txt")]
    assert len(pieces) > 2
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces[:-1])
