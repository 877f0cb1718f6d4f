import random

import pyarrow as pa
import pytest

from megatron.data.provenance import (
    BATCH_ROWS,
    Provenance,
    ProvenanceWriter,
    as_text,
    provenance_path,
)
from megatron.errors import ConfigError, DataError


def write(prefix, rows, fields=("repo", "path"), *, pieces=(1 << 30,)):
    """Write rows in pieces of the given sizes, the last of them again and again."""
    writer = ProvenanceWriter(provenance_path(prefix), fields)
    sizes, start = list(pieces), 0
    while start < len(rows):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        part = rows[start : start + size]
        writer.add({field: [row[field] for row in part] for field in fields})
        start += size
    writer.close()
    return Provenance.open(prefix, num_documents=len(rows))


def numbered(num_rows):
    return [
        {"repo": f"r{i % 7}", "path": None if i % 5 == 0 else f"ä{i}.py"} for i in range(num_rows)
    ]


@pytest.mark.parametrize("num_rows", [0, 1, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1])
def test_rows_come_back_and_batches_are_full_whatever_the_pieces(tmp_path, num_rows):
    rows = numbered(num_rows)
    provenance = write(tmp_path / "a", rows, pieces=(3, BATCH_ROWS - 5, 10, 50_000))
    assert len(provenance) == num_rows
    assert provenance.fields == ("repo", "path")
    for document in {0, 1, 5, num_rows // 2, num_rows - 2, num_rows - 1} & set(range(num_rows)):
        assert provenance.row(document) == rows[document]
    table = pa.ipc.open_file(provenance_path(tmp_path / "a")).read_all()
    assert table.to_pylist() == rows
    sizes = [len(batch) for batch in provenance.batches()]
    assert sizes == [BATCH_ROWS] * (num_rows // BATCH_ROWS) + [num_rows % BATCH_ROWS] * (
        num_rows % BATCH_ROWS > 0
    )


def test_pieces_do_not_change_the_file(tmp_path):
    rows = numbered(BATCH_ROWS + 100)
    write(tmp_path / "a", rows)
    write(tmp_path / "b", rows, pieces=(17, 4096))
    assert (
        provenance_path(tmp_path / "a").read_bytes() == provenance_path(tmp_path / "b").read_bytes()
    )


def test_columns_of_another_file_are_taken_as_they_are(tmp_path):
    rows = numbered(100)
    source = write(tmp_path / "a", rows)
    writer = ProvenanceWriter(provenance_path(tmp_path / "b"), source.fields)
    for batch in [*source.batches(), *source.batches()]:
        writer.add({name: batch.column(name) for name in source.fields})
    writer.close()
    joined = Provenance.open(tmp_path / "b", num_documents=200)
    assert [joined.row(number) for number in range(200)] == rows + rows


def test_batches_give_the_fields_that_are_asked_for(tmp_path):
    rows = numbered(10)
    provenance = write(tmp_path / "a", rows)
    (batch,) = provenance.batches(["path"])
    assert batch.to_pylist() == [{"path": row["path"]} for row in rows]


def test_no_side_file_is_no_provenance(tmp_path):
    assert Provenance.open(tmp_path / "a", num_documents=3) is None


def test_a_row_for_each_document_is_demanded(tmp_path):
    write(tmp_path / "a", numbered(10))
    with pytest.raises(DataError, match=r"has 10 rows.*11 documents"):
        Provenance.open(tmp_path / "a", num_documents=11)


@pytest.mark.parametrize("fields", [(), ("a", "a"), ("",), ("repo", "document"), ("dataset",)])
def test_fields_that_cannot_be_columns_are_refused(tmp_path, fields):
    with pytest.raises(ConfigError, match="provenance field"):
        ProvenanceWriter(tmp_path / "a", fields)
    assert not (tmp_path / "a").exists()


def test_an_aborted_file_is_gone(tmp_path):
    writer = ProvenanceWriter(tmp_path / "a", ["repo"])
    writer.add({"repo": ["x"]})
    writer.abort()
    assert not (tmp_path / "a").exists()


def test_every_truncation_is_an_error(tmp_path):
    path = provenance_path(tmp_path / "a")
    write(tmp_path / "a", numbered(20))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged"):
            Provenance.open(tmp_path / "a", num_documents=20)


def test_changed_bytes_never_end_the_process(tmp_path):
    """A change is found, or reads as other text of the same rows; a checksum tells it then."""
    path = provenance_path(tmp_path / "a")
    write(tmp_path / "a", numbered(20))
    whole = path.read_bytes()
    draw = random.Random(1)
    found = 0
    for _ in range(500):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            provenance = Provenance.open(tmp_path / "a", num_documents=20)
            rows = [provenance.row(number) for number in range(20)]
            assert sum(map(len, provenance.batches())) == len(rows)
        except DataError:
            found += 1
    assert found > 50


def test_json_values_are_stored_as_text():
    assert [as_text(value) for value in ("a", None, 5, True, ["x", 1])] == [
        "a",
        None,
        "5",
        "true",
        '["x",1]',
    ]
