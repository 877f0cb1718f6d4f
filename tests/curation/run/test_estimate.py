"""What a dry run predicts against what the run then does."""

import json
import random
from pathlib import Path

import pytest
import zstandard

pytest.importorskip("megatron.curation._minhash", reason="csrc/ is not compiled: make env")

from megatron.curation.collect import CollectConfig, plan_folders
from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.run.document import Document, Drop, Keep, Stage
from megatron.curation.run.estimate import estimate
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.curation.run.record_io import RecordWriter

LONG = Stage("long", lambda d: Drop("long") if len(d.text) > 5000 else Keep(d), {})


@pytest.fixture
def source(tmp_path):
    """Twelve files of which some hold few long documents and others many short ones, each a third twice."""
    draw = random.Random(4)
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in range(12):
        num_words = (50, 400, 4000)[shard % 3]
        rows = []
        for number in range(240_000 // num_words):
            text = draw.randbytes(3 * num_words).hex(" ", 3)
            copies = range(1 + (number % 3 == 0))
            rows += [{"text": text, "id": f"{shard}-{number}-{copy}"} for copy in copies]
        with zstandard.open(folder / f"{shard:02}.jsonl.zst", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_documents_rules_and_disk_are_those_of_the_run_though_shards_differ(tmp_path, source):
    steps = [LONG, dedup_comparison(DedupConfig())]
    given = RunOptions((str(source),), str(tmp_path / "out"), sample_mb=3.5, keep_intermediate=True)
    guess = estimate(steps, given)
    assert not (tmp_path / "out").exists()
    totals = run_steps(steps, given)
    dropped = {rule: count for rule, count, _ in totals.by_rule()}
    assert guess.sampled_bytes < 0.75 * guess.input_bytes
    assert guess.whole.num_read == pytest.approx(totals.num_read, rel=0.1)
    assert guess.whole.bytes_read == pytest.approx(totals.bytes_read, rel=0.1)
    assert guess.whole.by_rule()[0][1] == pytest.approx(dropped["long: long"], rel=0.1)
    assert guess.repeated[0] == pytest.approx(0.25, abs=0.02)  # copies lie beside each other
    between = tmp_path / "out/.pass-0/records", tmp_path / "out/.pass-1/work"
    passing = sum(file.stat().st_size for folder in between for file in folder.rglob("*.*"))
    assert guess.passing_bytes == pytest.approx(passing, rel=0.15)
    ledger = sum(path.stat().st_size for path in (tmp_path / "out/ledger").iterdir())
    assert guess.ledger_bytes == pytest.approx(ledger, rel=0.3)
    said = guess.describe()
    assert "dedup: 2" in said and "% of the sample's documents repeat another of it" in said


def test_what_compares_properties_says_nothing_of_texts(tmp_path, source):
    given = RunOptions((str(source),), str(tmp_path / "out"), sample_mb=0.5)
    guess = estimate([dedup_comparison(DedupConfig(by=("repo",)))], given)
    assert guess.repeated == (None,) and "dedup: of the whole" in guess.describe()


def write_halves(path, kind):
    """Write 6,000 short documents, then 1,200 long ones that are compressed much better, and that `LONG` drops."""
    draw = random.Random(2)
    words = [draw.randbytes(4).hex() for _ in range(50)]
    with RecordWriter(path, kind) as writer:
        for number in range(7200):
            hard, easy = draw.randbytes(300).hex(" ", 3), " ".join(draw.choices(words, k=600))
            writer.write(Document(str(number), hard if number < 6000 else easy, {"n": number}))
        writer.close()
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "jsonl.gz", "parquet"])
def test_one_file_is_looked_into_to_its_end(tmp_path, kind):
    """Whose beginning says nothing of the rest."""
    path = write_halves(tmp_path / f"in.{kind}", kind)
    size = path.stat().st_size
    given = RunOptions((str(path),), str(tmp_path / "out"), sample_mb=size * 0.2e-6)
    guess = estimate([LONG], given)
    totals = run_steps([LONG], given)
    assert totals.dropped() == 1200 and guess.read_part == 1
    assert guess.sampled_bytes < 0.5 * size
    assert guess.whole.num_read == pytest.approx(7200, rel=0.2)
    assert guess.whole.kept() == pytest.approx(6000, rel=0.2)
    assert guess.whole.bytes_read == pytest.approx(totals.bytes_read, rel=0.2)


def test_bounds_hold_the_truth_about_as_often_as_they_say(tmp_path):
    draw = random.Random(3)
    path = tmp_path / "in.jsonl"
    sizes = [int(draw.lognormvariate(6, 1)) for _ in range(8000)]
    rows = [{"text": "x" * size, "id": str(number)} for number, size in enumerate(sizes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hits = []
    for number in range(40):
        options = RunOptions((str(path),), sample_mb=0.4 + number * 0.013, dry_run=True)
        guess = estimate([], options)
        assert guess.documents_error is not None and 0.01 < guess.documents_error < 0.5
        hits.append(abs(guess.whole.num_read / 8000 - 1) <= guess.documents_error)
        assert f"(±{guess.documents_error:.0%})" in guess.describe()
    assert sum(hits) >= 34


def test_a_sample_of_all_is_what_there_is_and_one_of_few_places_says_so(tmp_path, source):
    given = RunOptions((str(source),), str(tmp_path / "out"), sample_mb=1000)
    guess = estimate([LONG], given)
    totals = run_steps([LONG], given)
    assert (guess.whole.num_read, guess.whole.bytes_read) == (totals.num_read, totals.bytes_read)
    assert guess.whole.documents == totals.documents
    said = guess.describe()
    assert "the sample is all of the input" in said and "±" not in said
    few = estimate([LONG], RunOptions((str(source),), sample_mb=0.1, dry_run=True))
    assert few.documents_error is None and "too few to tell how far off" in few.describe()


def test_files_that_are_not_read_through_are_named(tmp_path, source, monkeypatch):
    monkeypatch.setattr("megatron.curation.run.sample.LOOK_THROUGH", 1)
    guess = estimate([], RunOptions((str(source),), sample_mb=1.0, dry_run=True))
    assert guess.read_part < 0.9
    assert f"the first {guess.read_part:.0%} was looked into" in guess.describe()


def test_a_file_is_read_behind_what_its_compressed_bytes_were_read_ahead(tmp_path):
    """All compressed bytes are read with the first chunk, so their number does not say that the text was."""
    path = tmp_path / "in.jsonl.zst"
    with RecordWriter(path, "jsonl.zst") as writer:
        for number in range(3000):
            writer.write(Document(str(number), "x y " * (100 if number < 1000 else 1300), {}))
        writer.close()
    size = path.stat().st_size
    guess = estimate([LONG], RunOptions((str(path),), sample_mb=size * 0.3e-6, dry_run=True))
    assert size < 1 << 16 and guess.read_part == 1
    assert guess.whole.dropped() == pytest.approx(2000, rel=0.25)
    assert guess.sampled_bytes == pytest.approx(0.3 * size, rel=0.2)


def test_lines_longer_than_a_chunk_are_met_as_often_as_others(tmp_path, monkeypatch):
    """They are where a chunk begins, since a chunk ends with a line."""
    monkeypatch.setattr("megatron.curation.run.sample.PLACE_BYTES", 1)
    path = tmp_path / "in.jsonl.zst"
    with RecordWriter(path, "jsonl.zst") as writer:
        for number in range(30):
            writer.write(Document(f"long {number}", "x" * 1_100_000, {}))
            for inner in range(20):
                writer.write(Document(f"{number} {inner}", "y" * 2500, {}))
        writer.close()
    found = []
    for share in (0.3, 0.35, 0.4, 0.45, 0.5):
        sample_mb = share * path.stat().st_size / 1e6
        guess = estimate([LONG], RunOptions((str(path),), sample_mb=sample_mb, dry_run=True))
        found.append(guess.whole.dropped())
    assert sum(found) / len(found) == pytest.approx(30, rel=0.35)


def test_files_of_one_record_each_are_met(tmp_path):
    """A stretch of such a file has no line's start in it, unless it goes on at the beginning of the file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(200):
        row = {"text": "x" * 50_000, "id": str(number)}
        (folder / f"{number:03}.jsonl").write_text(json.dumps(row) + "\n")
    guess = estimate([], RunOptions((str(folder),), sample_mb=4.0, dry_run=True))
    assert guess.whole.num_read == pytest.approx(200, rel=0.3)
    assert guess.whole.bytes_read == pytest.approx(10e6, rel=0.1)


def test_folders_are_looked_into_at_places_all_over_them(tmp_path, monkeypatch):
    """The first files say nothing of the rest; what is above the cap, or empty, is counted and not read."""
    draw = random.Random(5)
    for number in range(1500):
        size = draw.randrange(500, 1500) if number < 500 else draw.randrange(4000, 9000)
        content = "x" * size if number % 3 else "\0" * size
        (tmp_path / f"{number:04}.py").write_text(content)
    (tmp_path / "0000-empty.py").touch()
    (tmp_path / "0001-huge.py").write_text("x" * 10_000_000)
    caps = {"shard_bytes": 1_000_000, "max_document_bytes": 1_000_000}
    shards = list(plan_folders([tmp_path], CollectConfig(), **caps))
    opened = []
    look = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: (opened.append(self), look(self, mode))[1])
    given = RunOptions(("in",), sample_mb=1.0, dry_run=True)
    guess = estimate([LONG], given, sources=shards)
    assert len(opened) < 500 and guess.sampled_bytes == pytest.approx(1e6, rel=0.05)
    assert guess.whole.num_read == pytest.approx(1000, rel=0.25)
    assert guess.whole.bad["binary"] == pytest.approx(500, rel=0.35)
    assert guess.documents_error is not None and guess.documents_error < 0.5
    whole = estimate([LONG], RunOptions(("in",), sample_mb=100.0), sources=shards)
    assert whole.whole.num_read == 1001 and whole.whole.bad == {
        "binary": 500,
        "above --max-document-mb": 1,
    }
