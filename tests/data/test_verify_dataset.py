import random

import numpy as np
import pyarrow as pa
import pytest

from megatron.data import verify_dataset as module
from megatron.data.preprocessing.dataset_writer import DatasetWriter
from megatron.data.preprocessing.documents import Documents
from megatron.data.verify_dataset import dataset_files, verify_dataset
from megatron.tokenizer.tokenizer import NullTokenizer

NUM_DOCUMENTS = 50


@pytest.fixture
def prefix(tmp_path):
    with DatasetWriter(tmp_path / "a", "<u2", ["repo"]) as writer:
        sizes = np.arange(1, NUM_DOCUMENTS + 1)
        writer.add(
            Documents(
                (np.arange(sizes.sum()) % 1000).astype("<u2"),
                sizes,
                np.ones(NUM_DOCUMENTS, np.int64),
                {"repo": pa.array([f"repo {i}" for i in range(NUM_DOCUMENTS)])},
            )
        )
        writer.finalize()
    return str(tmp_path / "a")


def test_a_good_dataset_is_described(prefix):
    told = []
    report = verify_dataset(prefix, tokenizer=NullTokenizer(999), on_bytes=told.append)
    assert report.findings == []
    assert report.describe() == (
        f"{prefix}: good; 50 items in 50 documents, 50 rows of repo, 1,275 ids from 0 to 999, checksums of 3 files"
    )
    assert sum(told) == sum(path.stat().st_size for path in dataset_files(prefix))


def test_any_changed_byte_of_any_file_is_found(prefix, tmp_path):
    draw = random.Random(1)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _ in range(25):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            report = verify_dataset(prefix, tokenizer=NullTokenizer(999))
            assert report.findings, (path.name, bytes(changed))
        path.write_bytes(whole)
    assert verify_dataset(prefix).findings == []


def test_any_truncation_or_missing_file_is_found(prefix, tmp_path):
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert verify_dataset(prefix).findings
        path.unlink()
        report = verify_dataset(prefix)
        assert bool(report.findings) == (path.suffix != ".sha256")
        path.write_bytes(whole)


def test_ids_outside_of_the_vocabulary_are_counted_and_placed(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 64)
    (tmp_path / "a.sha256").unlink()
    report = verify_dataset(prefix, tokenizer=NullTokenizer(989))
    # Ids 990 to 999; id 990 is at position 990, in the document of 45 ids, which starts at 44 * 45 / 2.
    assert report.findings == [
        f"{prefix}.bin: 10 ids are not from 0 to 989, the first at position 990 (id 990, document 44); "
        "the file is damaged or comes from another tokenizer"
    ]
    assert verify_dataset(prefix, tokenizer=NullTokenizer(999)).findings == []
    assert "no checksum file" in verify_dataset(prefix).describe()


def test_a_dataset_of_another_tokenizer_is_found_by_what_it_says(tmp_path):
    """Ids of a vocabulary of the same size are all in its range."""
    ours, other = NullTokenizer(999), NullTokenizer(998)
    for name, origin in (("same", {"tokenizer": ours.fingerprint()}), ("silent", {})):
        with DatasetWriter(tmp_path / name, "<u2", (), origin) as writer:
            writer.finalize()
        assert verify_dataset(str(tmp_path / name), tokenizer=ours).findings == []
    (finding,) = verify_dataset(str(tmp_path / "same"), tokenizer=other).findings
    assert (
        f"another tokenizer than NullTokenizer, by its fingerprint {ours.fingerprint()[:12]}…"
        in finding
    )


def test_every_finding_is_named_not_only_the_first(prefix, tmp_path):
    index = bytearray((tmp_path / "a.idx").read_bytes())
    index[34 + 4 * 10] ^= 1  # a size in the middle
    (tmp_path / "a.idx").write_bytes(index)
    ids = bytearray((tmp_path / "a.bin").read_bytes())
    ids[501] = 0xFF
    (tmp_path / "a.bin").write_bytes(ids)
    (tmp_path / "a.provenance.arrow").unlink()
    findings = "\n".join(verify_dataset(prefix, tokenizer=NullTokenizer(999)).findings)
    assert len(findings.splitlines()) == 5
    for message in (
        "arrow, which is missing",
        "a.idx is damaged: item 11 points",
        "a.bin: 1 ids are not from 0 to 999, the first at position 250",
        "a.bin is not what a.sha256 says",
        "a.idx is not what a.sha256 says",
    ):
        assert message in findings


def test_a_file_that_the_checksums_do_not_name_is_found(prefix, tmp_path):
    lines = (tmp_path / "a.sha256").read_text().splitlines(keepends=True)
    (tmp_path / "a.sha256").write_text("".join(lines[:2]))
    (finding,) = verify_dataset(prefix).findings
    assert f"does not name {prefix}.provenance.arrow" in finding


def test_rows_of_provenance_are_all_read(tmp_path):
    count = 140_000
    ones = np.ones(count, np.int64)
    with DatasetWriter(tmp_path / "a", "<u2", ["repo"]) as writer:
        rows = {"repo": pa.array(["x"] * count)}
        writer.add(Documents(np.zeros(count, "<u2"), ones, ones, rows))
        writer.finalize()
    (tmp_path / "a.sha256").unlink()
    path = tmp_path / "a.provenance.arrow"
    damaged = bytearray(path.read_bytes())
    damaged[5000:6000] = b"\xff" * 1000  # where the first rows lie; opening looks at the last
    path.write_bytes(damaged)
    (finding,) = verify_dataset(str(tmp_path / "a")).findings
    assert "a.provenance.arrow is damaged" in finding


def test_negative_ids_are_found_without_a_vocabulary(tmp_path):
    with DatasetWriter(tmp_path / "a", "<i4") as writer:
        one = np.ones(1, np.int64)
        writer.add(Documents(np.array([5, -1, 7], "<i4"), one * 3, one))
        writer.finalize()
    (finding,) = verify_dataset(str(tmp_path / "a")).findings
    assert "1 ids are not from 0" in finding


def test_no_dataset_is_one_finding_and_an_empty_one_is_good(tmp_path):
    (finding,) = verify_dataset(str(tmp_path / "none")).findings
    assert "none.idx does not exist" in finding
    with DatasetWriter(tmp_path / "empty", "<u2", ["repo"]) as writer:
        writer.finalize()
    assert verify_dataset(str(tmp_path / "empty"), tokenizer=NullTokenizer(4)).findings == []
