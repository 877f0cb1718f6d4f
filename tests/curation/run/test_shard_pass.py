"""Runs over files: the same for any number of workers, complete or not there, continued, and every document accounted for."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron.curation.run import data_card, ledger, pool, shard_pass
from megatron.curation.run.document import Changed, Document, Drop, Keep, Stage
from megatron.curation.run.estimate import estimate
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import Comparison, run_steps
from megatron.curation.run.record_io import PartSource
from megatron.curation.run.totals import Totals
from megatron.errors import DataError
from tests.curation.entries import entries_of


def odd_apply(document: Document):
    number = int(document.id)
    if number % 3 == 0:
        return Drop("third", number, "of three")
    if number % 5 == 0:
        return Changed(document.with_text(document.text.upper()), "loud", 1)
    return Keep(document.with_metadata(language="python"))


SEVENTH = Stage("seventh", lambda d: Drop("seventh") if int(d.id) % 7 == 0 else Keep(d), {})
ODD = Stage("odd", odd_apply, {"threshold": 3})


def write_jsonl(path: Path, ids: range, **more) -> Path:
    lines = [{"text": f"line {i}\n" * 20, "id": str(i), "stars": i, **more} for i in ids]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def options(tmp_path, *inputs, name="out", **more):
    given = {"input": tuple(map(str, inputs)), "output": str(tmp_path / name), "shard_mb": 0.004}
    return RunOptions(**{**given, **more})


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def records(folder: Path) -> list[dict]:
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", range(100), lang="c")


def test_output_is_the_same_for_any_number_of_workers(tmp_path, source):
    outputs = []
    for workers in (1, 2, 8):
        run_steps([ODD], options(tmp_path, source, name=f"out{workers}", workers=workers))
        outputs.append(contents(tmp_path / f"out{workers}"))
    assert len([name for name in outputs[0] if name.endswith(".zst")]) > 3
    assert outputs[0] == outputs[1]
    # as many shards as workers
    assert outputs[0] == outputs[2]


def test_records_keep_their_keys_and_the_ledger_accounts_for_each(tmp_path, source):
    totals = run_steps([ODD], options(tmp_path, source, format="jsonl"))
    kept = records(tmp_path / "out")
    assert [row["id"] for row in kept] == [str(i) for i in range(100) if i % 3]
    assert kept[0] == {
        "text": "line 1\n" * 20,
        "id": "1",
        "stars": 1,
        "lang": "c",
        "language": "python",
    }
    assert kept[3]["text"].startswith("LINE 5")
    assert (totals.num_read, totals.kept(), totals.dropped()) == (100, 66, 34)
    entries = entries_of(tmp_path / "out")
    ends = [entry.id for entry in entries if entry.verdict != "changed"]
    assert ends == [str(i) for i in range(100)]
    again = Totals()
    for entry in entries:
        again.note(entry)
    assert again.documents == totals.documents and again.num_bytes == totals.num_bytes
    assert sum(size for _, size in totals.by_language("kept").values()) == totals.bytes_kept()


def test_a_document_ends_in_one_line_of_the_ledger_however_many_passes_there_are(tmp_path, source):
    decide = Comparison("compare", lambda corpus: lambda shard: SEVENTH, {}, len)
    totals = run_steps([ODD, decide, Stage("end", Keep, {})], options(tmp_path, source))
    assert [row[:2] for row in totals.by_rule()] == [("odd: third", 34), ("seventh: seventh", 10)]
    entries = entries_of(tmp_path / "out")
    again = Totals()
    for entry in entries:
        again.note(entry)
    assert again.documents == totals.documents and again.num_bytes == totals.num_bytes
    ends = sorted(int(entry.id) for entry in entries if entry.verdict != "changed")
    assert ends == list(range(100))


def test_why_names_stage_rule_and_value_and_goes_back_through_inputs(tmp_path, source):
    run_steps([ODD], options(tmp_path, source, name="one"))
    second = Stage("even", lambda d: Drop("even") if int(d.id) % 2 == 0 else Keep(d), {})
    run_steps([second], options(tmp_path, tmp_path / "one", name="two"))

    def told(id):
        return [ledger.describe(entry) for _, entry in ledger.why(tmp_path / "two", id)]

    assert told("3") == ["dropped by odd: third = 3 (of three); 140 bytes of c"]
    assert told("4") == [
        "kept by odd; 140 bytes of python",
        "dropped by even: even; 140 bytes of python",
    ]
    assert told("5")[0] == "changed by odd: loud = 1; 140 bytes of c"
    assert told("100") == []


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_is_written_and_read(tmp_path, source, kind):
    run_steps([ODD], options(tmp_path, source, name="one", format=kind))
    run_steps([], options(tmp_path, tmp_path / "one", name="two", format="jsonl"))
    run_steps([ODD], options(tmp_path, source, name="plain", format="jsonl"))
    found, expected = records(tmp_path / "two"), records(tmp_path / "plain")
    if kind == "parquet":  # a column is there for every row
        expected = [{"language": None, **row} for row in expected]
    assert sorted(found, key=lambda row: row["id"]) == sorted(expected, key=lambda row: row["id"])


def test_records_of_other_datasets_are_read_under_their_keys(tmp_path):
    row = {
        "content": "x = 1\n",
        "hexsha": "ab",
        "max_stars_repo_path": "a/b.PY",
        "max_stars_count": 3,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with zstandard.open(tmp_path / "b.jsonl.zst", "wt") as file:
        file.write(json.dumps({"text": "y", "metadata": {"path": "c.go", "stars": 4}}) + "\n")
    run_steps(
        [],
        options(
            tmp_path,
            tmp_path / "a.parquet",
            name="a",
            text_key="content",
            id_key="hexsha",
            format="jsonl",
        ),
    )
    run_steps([], options(tmp_path, tmp_path / "b.jsonl.zst", name="b", format="jsonl"))
    first, second = records(tmp_path / "a")[0], records(tmp_path / "b")[0]
    assert (first["text"], first["id"]) == ("x = 1\n", "ab")
    assert second["id"] == "b.jsonl.zst:1"  # named by its place
    one, two = (
        Document("", "", {k: v for k, v in row.items() if k != "text"}) for row in (first, second)
    )
    assert (one.extension(), one.find("stars")) == ("py", 3)
    assert (two.extension(), two.find("stars")) == ("go", 4)


def test_bad_records_are_set_aside_with_place_and_reason_or_end_a_strict_run(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"text": "a", "id": 7}\n{"text": 1}\n\nnot json\n{"text": "\xff"}\n[1]\n{"text": "b"}'
    )
    totals = run_steps([], options(tmp_path, path, shard_mb=1, format="jsonl"))
    assert [row["id"] for row in records(tmp_path / "out")] == ["7", "in.jsonl:7"]
    lines = (tmp_path / "out/quarantine/0-00000.jsonl").read_text().splitlines()
    assert [(row["place"], row["reason"]) for row in map(json.loads, lines)] == [
        ("in.jsonl:2", "no text under 'text'"),
        ("in.jsonl:4", "not JSON"),
        ("in.jsonl:5", "not UTF-8"),
        ("in.jsonl:6", "not a JSON object"),
    ]
    assert json.loads(lines[1])["raw"] == "not json"
    assert totals.bad.total() == 4 and totals.describe().startswith("6 records = 2 kept")
    with pytest.raises(DataError, match=r"in\.jsonl:2: no text under 'text'; fix it"):
        run_steps([], options(tmp_path, path, name="strict", strict=True))


def test_empty_and_oversized_documents_are_dropped_by_name(tmp_path):
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(
            json.dumps({"text": text, "id": text[:1]}) + "\n"
            for text in ("", "é" * 500, "c" * 1000)
        )
    totals = run_steps([], options(tmp_path, path, max_document_mb=0.000999))
    assert totals.by_rule() == [("read: too-large", 2, 2000), ("read: empty", 1, 0)]


def test_interrupted_run_continues_and_ends_as_if_it_had_not_been(tmp_path, source, monkeypatch):
    run_steps([ODD], options(tmp_path, source, name="whole"))
    read, calls = PartSource.read, []

    def failing(self):
        calls.append(self.part.start)
        if self.part.start > 8000:
            raise DataError("the disk went away")
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(PartSource, "read", failing)
        with pytest.raises(DataError, match="went away"):
            run_steps([ODD], options(tmp_path, source))
    out = tmp_path / "out"
    num_done = len(list((out / "shards").glob("*.json")))
    assert (
        0
        < num_done
        == len(list(out.glob("*.zst")))
        == len(list((out / "ledger").glob("*.parquet")))
    )
    with pytest.raises(DataError, match="has not ended"):
        run_steps([], options(tmp_path, out, name="later"))
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.zst")}
    run_steps([ODD], options(tmp_path, source))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(out) == contents(tmp_path / "whole")


def test_shard_of_other_stages_or_input_is_done_again(tmp_path, source):
    run_steps([ODD], options(tmp_path, source))
    out = tmp_path / "out"
    expected = contents(out)
    (out / "totals.json").unlink()
    stale = json.loads((out / "shards/0-00001.json").read_text()) | {"fingerprint": "another"}
    (out / "shards/0-00001.json").write_text(json.dumps(stale))
    (out / "00001.jsonl.zst").write_bytes(b"stale")
    run_steps([ODD], options(tmp_path, source))
    assert contents(out) == expected


def test_folder_of_another_command_is_left_alone_unless_told(tmp_path, source):
    run_steps([ODD], options(tmp_path, source))
    other = Stage("odd", odd_apply, {"threshold": 4})
    with pytest.raises(
        DataError,
        match="other settings or other input wrote; name another folder, or add --overwrite",
    ):
        run_steps([other], options(tmp_path, source))
    run_steps([other], options(tmp_path, source, overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt, which no run of curate\.py wrote"):
        run_steps([ODD], options(tmp_path, source, name="mine", overwrite=True))


def test_a_run_that_was_stopped_as_it_claimed_its_folder_begins_again(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.run.json.0123456789ab.tmp").write_text("{")
    run_steps([ODD], options(tmp_path, source))
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_complete_run_is_summed_up_without_work(tmp_path, source, monkeypatch):
    totals = run_steps([ODD], options(tmp_path, source))
    monkeypatch.setattr(pool, "Workers", None)
    assert run_steps([ODD], options(tmp_path, source)).to_json() == totals.to_json()


def test_what_a_run_stopped_behind_its_totals_left_is_removed_by_the_next(tmp_path, source):
    run_steps([ODD], options(tmp_path, source))
    (tmp_path / "out/.pass-0/work").mkdir(parents=True)
    (tmp_path / "out/.lock").touch()
    run_steps([ODD], options(tmp_path, source, keep_intermediate=True))
    assert (tmp_path / "out/.pass-0/work").is_dir()
    run_steps([ODD], options(tmp_path, source))
    assert not list((tmp_path / "out").glob(".*"))


def test_no_empty_quarantine_is_ever_there_wherever_a_run_stops(tmp_path, source, monkeypatch):
    def publish(pairs):
        assert pairs[0][1].parent.name != "quarantine"
        real(pairs)

    real = shard_pass.publish
    monkeypatch.setattr(shard_pass, "publish", publish)
    run_steps([ODD], options(tmp_path, source))
    assert not list((tmp_path / "out/quarantine").iterdir())


def test_another_cap_is_another_run_and_strict_counts_for_a_complete_one_too(tmp_path, source):
    with source.open("a") as file:
        file.write("{\n")
    run_steps([ODD], options(tmp_path, source))
    with pytest.raises(DataError, match="other settings"):
        run_steps([ODD], options(tmp_path, source, max_document_mb=0.0001))
    assert (tmp_path / "out/totals.json").exists()  # who is refused changes nothing
    with pytest.raises(DataError, match="is complete without --strict, and 1 records lie in"):
        run_steps([ODD], options(tmp_path, source, strict=True))
    (tmp_path / "out/totals.json").unlink()
    with pytest.raises(DataError, match="not JSON; fix it"):
        run_steps([ODD], options(tmp_path, source, strict=True))


def test_data_card_adds_up_and_names_settings(tmp_path, source):
    run_steps([ODD], options(tmp_path, source))
    card = data_card.write_card(tmp_path / "out").read_text()
    assert "100 documents were read (0.0 MB of text), 66 kept" in card
    assert "| odd: third | 34 |" in card and "| odd | threshold 3 |" in card
    assert "| all | 66 |" in card and "| python | 53 | 0.01 |" in card


def test_data_card_tells_what_the_input_went_through_and_what_was_set(tmp_path, source):
    digest = hashlib.sha256(b"a list").hexdigest()
    settings = {"any_license": True, "languages": ["c", "go"], "opt_out": digest, "licenses": [], "min_stars": 0, "strict": False, "index": None, "against": ["a|b"]}  # fmt: skip
    run_steps([ODD], options(tmp_path, source, name="one"))
    run_steps(
        [Stage("even", lambda d: Changed(d.with_text(d.text[1:]), "cut"), settings)],
        options(tmp_path, tmp_path / "one", name="two"),
        command=["even"],
    )
    lines = data_card.write_card(tmp_path / "two").read_text().splitlines()
    stages = lines[lines.index("| stage | settings |") + 2 :][:2]
    assert stages == [
        "| odd | threshold 3 |",
        f"| even | any-license, languages c go, opt-out {digest[:12]}, against a\\|b |",
    ]
    assert "- `one`: 100 records = 66 kept + 34 dropped (34 odd: third) + 0 bad" in "\n".join(lines)
    assert "Stages that change text made it 0.00 MB shorter." in lines
    assert "| c | 13 | 0.00 | 19.7% | 0 | 0.00 |" in lines


def test_dry_run_predicts_from_a_sample_and_writes_nothing(tmp_path, source):
    guess = estimate([ODD], options(tmp_path, source, sample_mb=0.01, dry_run=True))
    assert not (tmp_path / "out").exists()
    assert 0 < guess.sampled_bytes < guess.input_bytes == source.stat().st_size
    assert guess.whole.num_read == pytest.approx(100, rel=0.2)
    assert guess.whole.dropped() / guess.whole.num_read == pytest.approx(0.34, abs=0.1)
    assert "core-hours" in guess.describe() and "odd: third" in guess.describe()
