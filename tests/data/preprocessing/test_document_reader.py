import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron.data.preprocessing import document_reader
from megatron.data.preprocessing.document_reader import (
    CHUNK_BYTES,
    Part,
    check_inputs,
    load,
    plan_parts,
    read_chunks,
    read_text,
)
from megatron.data.preprocessing.records import parse_chunk
from megatron.errors import DataError

ROOT = Path(__file__).parents[3]
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


def test_a_path_of_names_leads_to_text_inside_of_objects(tmp_path):
    lines = [
        b'{"content": {"text": "a", "repo": "r"}}',
        b'{"content.text": "b", "content": {"text": "not this"}}',
        b'{"content": {"text": 3}}',
        b'{"content": {}}',
        b'{"content": "c"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (part,) = plan_parts([tmp_path / "a.jsonl"])
    (chunk,) = map(load, read_chunks(part, ["content.text"]))
    records = parse_chunk(chunk, ["content.text"], ["content.repo"])
    assert records.texts["content.text"] == ["a", "b"]
    assert records.fields["content.repo"] == ["r", None]
    assert [bad.reason for bad in records.bad] == [
        "key 'content.text' is not a string",
        "no key 'content.text'",
        "no key 'content.text'",
    ]


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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path, name):
    """In a sum of the content, where nothing but that tells of it: the frame itself can be read."""
    path = tmp_path / name
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    content = bytearray(gzip.compress(LINES) if name.endswith("gz") else compressor.compress(LINES))
    content[-8 if name.endswith("gz") else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is damaged or cut short .*(CRC|checksum)"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_another_kind_than_its_name_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


def test_inputs_that_cannot_be_read_are_named_before_anything_starts(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "again.jsonl").symlink_to("good.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in [
        ("missing.jsonl", "does not exist"),
        ("empty.jsonl", "is empty"),
        ("notes.docx", "no known kind"),
        (".", "is a folder"),
        ("good.jsonl/x.jsonl", "cannot be read: Not a directory"),
        ("pipe.jsonl", "is a pipe or a device"),
        ("good.jsonl", "its documents would come twice"),
        ("again.jsonl", r"again\.jsonl is the file that .*good\.jsonl names, too"),
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


def random_lines(draw, count):
    """Lines of very different length, some blank, some with CRLF, the last perhaps without an end."""
    lines = []
    for number in range(count):
        size = draw.choice([0, 1, 5, 40, 40, 400])
        end = draw.choice(["\n", "\n", "\r\n"])
        lines.append(json.dumps({"text": f"{number}:" + "x" * size}) + end)
        lines += ["\n"] * draw.choice([0, 0, 0, 1, 3])
    content = "".join(lines).encode()
    return content.rstrip() if draw.random() < 0.5 else content


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_records", [None, 2])
def test_spans_and_shards_of_any_size_hold_every_line_once(
    tmp_path, monkeypatch, seed, max_records
):
    draw = random.Random(seed)
    monkeypatch.setattr(document_reader, "CHUNK_BYTES", draw.choice([3, 20, 100, 5000]))
    monkeypatch.setattr(document_reader, "SCAN_BYTES", draw.choice([1, 3, 64]))
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_bytes(random_lines(draw, 20))
    expected = [
        json.loads(line)["text"]
        for path in paths
        for line in path.read_bytes().split(b"\n")
        if line.strip()
    ]
    assert texts_of(plan_parts(paths), max_records=max_records) == expected
    for count in (2, 3, 7, 200):
        shards = [plan_parts(paths, number, count) for number in range(1, count + 1)]
        found = [text for parts in shards for text in texts_of(parts, max_records=max_records)]
        assert found == expected
        size = sum(part.stop - part.start for parts in shards for part in parts)
        assert size == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("seed", range(3))
def test_the_records_before_a_part_are_counted(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "a.jsonl"
    path.write_bytes(random_lines(draw, 30))
    content = path.read_bytes()
    starts = [0] + [i + 1 for i, byte in enumerate(content[:-1]) if byte == 10]
    for start in range(len(content)):
        part = Part(path, start, len(content))
        assert part.records_before() == sum(other < start for other in starts)


def test_shards_take_compressed_files_whole_and_parquet_by_row_groups(tmp_path):
    paths = [write(tmp_path / name) for name in ("a.jsonl.gz", "b.parquet", "c.jsonl.zst")]
    expected = [row["text"] for row in ROWS] * 3
    for count in (1, 2, 5, 40):
        shards = [plan_parts(paths, number, count) for number in range(1, count + 1)]
        assert [text for parts in shards for text in texts_of(parts)] == expected
        for path in (paths[0], paths[2]):
            assert sum(part.path == path for parts in shards for part in parts) == 1
    # Four row groups of 300, 300, 300 and 100 rows.
    size = paths[1].stat().st_size
    parts = [Part(paths[1], size * i // 10, size * (i + 1) // 10) for i in range(10)]
    counts = [len(texts_of([part])) for part in parts]
    assert counts == [300, 0, 0, 300, 0, 0, 300, 0, 0, 100]
    assert [part.records_before() for part in parts if texts_of([part])] == [0, 300, 600, 900]


def test_a_line_longer_than_many_chunks_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(document_reader, "CHUNK_BYTES", 1000)
    long = "x" * 50_000
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"text": "{long}"}}\n{{"text": "b"}}')
    (part,) = plan_parts([tmp_path / "a.jsonl"])
    chunks = [load(chunk) for chunk in read_chunks(part, ["text"])]
    assert len(chunks) == 51
    assert [len(chunk.data) for chunk in chunks if chunk.data] == [14 + 50_013, 13]
    assert texts_of([part]) == ["a", long, "b"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
@pytest.mark.parametrize("max_records", [None, 2])
def test_lines_that_are_too_long_are_skipped_and_told_wherever_they_end(
    tmp_path, monkeypatch, seed, name, max_records
):
    draw = random.Random(seed)
    monkeypatch.setattr(document_reader, "CHUNK_BYTES", 64)
    monkeypatch.setattr(document_reader, "SCAN_BYTES", draw.choice([1, 7, 64]))
    rows = [{"text": f"{n}:" + "x" * draw.choice([0, 40, 80, 150, 700])} for n in range(60)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    if seed % 2:
        lines[-1] = lines[-1][:-1]
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / name
    content = b"".join(lines)
    path.write_bytes(
        zstandard.ZstdCompressor().compress(content) if name.endswith("zst") else content
    )
    (part,) = plan_parts([path])
    chunks = [
        load(chunk)
        for chunk in read_chunks(part, ["text"], max_records=max_records, max_record_bytes=150)
    ]
    sizes = [chunk.num_skipped_bytes for chunk in chunks if chunk.num_skipped_bytes]
    assert sizes == [len(line) for line in lines if len(line) > 150] and len(sizes) > 3
    found = [parse_chunk(chunk, ["text"]) for chunk in chunks]
    texts = [text for one in found for text in one.texts["text"]]
    assert texts == [row["text"] for row, line in zip(rows, lines, strict=True) if len(line) <= 150]
    assert sum(one.num_read for one in found) == 60
    assert sum(chunk.num_bytes for chunk in chunks) == path.stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_is_too_long_is_never_held(tmp_path, name):
    """100 MB without a line's end: neither read, nor decoded."""
    with (gzip.open(tmp_path / name, "wb", 1) if name.endswith("gz") else (tmp_path / name).open("wb")) as file:  # fmt: skip
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "b"}\n')
    (part,) = plan_parts([tmp_path / name])
    tracemalloc.start()
    chunks = [load(chunk) for chunk in read_chunks(part, ["text"], max_record_bytes=2_000_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [t for chunk in chunks for t in parse_chunk(chunk, ["text"]).texts["text"]] == ["a", "b"]
    assert peak < 8e6


@pytest.mark.parametrize("length", [0, 1000, len(LINES) - 2])
def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path, length):
    path = write(tmp_path / "a.jsonl", LINES[:-1])
    (part,) = plan_parts([path])
    chunks = list(read_chunks(part, ["text"]))
    path.write_bytes(LINES[:length])
    with pytest.raises(DataError, match="became shorter"):
        load(chunks[0])


def test_fields_are_kept_as_text_and_missing_ones_as_null(tmp_path):
    rows = [
        {"text": "a", "repo": "r", "stars": 5, "fork": False, "tags": ["x", "é"], "nested": None},
        {"text": "b", "repo": None, "stars": 1.5, "nested": {"k": 1}},
        {"text": 3, "repo": "of a bad record"},
    ]
    fields = ("repo", "stars", "fork", "tags", "nested")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        (part,) = plan_parts([tmp_path / name])
        (chunk,) = read_chunks(part, ["text"], fields)
        records = parse_chunk(load(chunk), ["text"], fields)
        assert records.texts["text"] == ["a", "b"]
        assert records.fields == {
            "repo": ["r", None],
            "stars": ["5", "1.5"] if name == "a.jsonl" else ["5.0", "1.5"],
            "fork": ["false", None],
            "tags": ['["x","é"]', None],
            "nested": [None, '{"k":1}'],
        }


def test_a_field_that_is_no_json_value_is_an_error(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "sha": [b"\x00\xff"]}), tmp_path / "a.parquet")
    (part,) = plan_parts([tmp_path / "a.parquet"])
    (chunk,) = read_chunks(part, ["text"], ["sha"])
    with pytest.raises(DataError, match="'sha' holds bytes values"):
        parse_chunk(chunk, ["text"], ["sha"])


def test_parquet_strings_that_are_not_utf8_are_bad_records(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", "é".encode()], pa.binary())
    strings = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    (records,) = read(tmp_path / "a.parquet")
    assert records.texts["text"] == ["good", "é"]
    assert [(bad.number, bad.reason) for bad in records.bad] == [(2, "not UTF-8")]


def test_rows_of_parquet_come_in_chunks_of_about_a_megabyte(tmp_path):
    """In one row group of 40 MB, of which no more than a few rows are held."""
    draw = random.Random(1)
    texts = [draw.randbytes(10_000).hex() for _ in range(2000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2000)
    (part,) = plan_parts([tmp_path / "a.parquet"])
    sizes = [len(chunk.data) for chunk in read_chunks(part, ["text"]) if len(chunk.data)]
    assert max(sizes) < 3 * CHUNK_BYTES
    assert len(sizes) > 20


def test_no_more_of_a_row_group_is_held_than_a_few_rows(tmp_path):
    draw = random.Random(1)
    for name, count in (("small", 200), ("large", 6000)):
        texts = [draw.randbytes(10_000).hex() for _ in range(count)]
        table = pa.table({"text": texts})
        # Pages of 1 MB: one is always held, and the default is one of 1,024 rows.
        options = {"compression": "none", "write_batch_size": 16}
        pq.write_table(table, tmp_path / f"{name}.parquet", **options)
    # In a process of its own: Arrow counts the most that it had since the start.
    script = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
from megatron.data.preprocessing.document_reader import plan_parts, read_chunks
tracemalloc.start()
for name in ("small", "large"):
    (part,) = plan_parts([Path(sys.argv[1]) / f"{name}.parquet"])
    assert sum(len(chunk.data) for chunk in read_chunks(part, ["text"])) > 4e6
    print((pa.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1]) / 1e6)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    small, large = map(float, result.stdout.split())
    assert large - small < 12  # of 120


def test_ugly_lines_each_have_a_reason(tmp_path):
    lines = [
        (b'{"text": "\xc3\x28"}', "not UTF-8"),
        (b"\xff\xfe\x00{", "not UTF-8"),
        (b"\0\0\0", "not JSON"),
        (b'{"text": "a\0b"}', "not JSON"),
        (b'{"text": "\\ud800"}', "holds half of a surrogate pair, which is no character"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'{"text": NaN}', "key 'text' is not a string"),
        (b"NaN", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"text": ' + b"[" * 100_000, "nested too deep"),
        (b'"text"', "not a JSON object"),
        (b'{"text": "cut in the mid', "not JSON, and the file ends in it"),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for line, _ in lines))
    (records,) = read(tmp_path / "a.jsonl")
    assert records.texts["text"] == []
    assert [bad.reason for bad in records.bad] == [reason for _, reason in lines]


def test_what_python_writes_beside_the_standard_is_read(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "a"}',
        b'{"text": "b", "score": NaN}',
        b'{"text": "c", "n": -Infinity}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (records,) = read(tmp_path / "a.jsonl")
    assert records.texts["text"] == ["a", "b", "c"] and records.bad == []


def test_nul_characters_in_a_string_are_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\u0000b"}\r\n')
    (records,) = read(tmp_path / "a.jsonl")
    assert records.texts["text"] == ["a\0b"]
