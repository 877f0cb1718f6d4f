"""Records from anywhere: what cannot be written again is set aside, and each one has a name of its own."""

import contextlib
import gc
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.curation.run import ledger
from megatron.curation.run.document import Document
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.curation.run.record_io import BadRecord, RecordWriter, distinct_names, plan_sources
from megatron.errors import DataError

ROOT = Path(__file__).parents[3]


def read(*paths, **kwargs):
    sources = plan_sources(paths, shard_bytes=10**6, text_key="text", id_key="id", **kwargs)
    return [item for source in sources for item in source.read()]


def lists(depth):
    return '{"text": "x", "id": "a", "m": ' + "[" * depth + "]" * depth + "}"


def test_what_could_not_be_written_again_is_set_aside_with_its_reason(tmp_path):
    path = tmp_path / "in.jsonl"
    big = '{"text": "x", "id": "a", "n": [123456789012345678901234567890], "z": NaN}'
    good = '{"text": "x", "id": "b", "n": 18446744073709551615, "z": NaN, "m": {"l": [[1]]}}'
    path.write_text("\n".join([big, lists(300), lists(100_000), lists(99), good]) + "\n")
    items = read(path)
    assert [item.reason if isinstance(item, BadRecord) else item.id for item in items] == [
        "holds a whole number of more than 64 bits",
        "nested too deep",
        "nested too deep",
        "a",
        "b",
    ]
    totals = run_steps([], RunOptions((str(path),), str(tmp_path / "out"), format="jsonl"))
    assert (totals.kept(), totals.bad.total()) == (2, 3)


def test_records_without_ids_of_files_of_one_name_have_ids_of_their_own(tmp_path):
    for folder in ("x/python", "x/java", "y/java"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "data.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')
    items = read(*(tmp_path / name / "data.jsonl" for name in ("x/python", "x/java", "y/java")))
    assert [item.id for item in items if isinstance(item, Document)] == [
        f"{name}/data.jsonl:{line}" for name in ("python", "x/java", "y/java") for line in (1, 2)
    ]
    twice = [tmp_path / "x/java/data.jsonl"] * 2
    assert len(set(distinct_names(twice))) == 1  # there is nothing to tell them by


def test_records_of_one_id_have_a_line_each_and_why_shows_both(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "x", "id": "a"}\n{"text": "", "id": "a"}\n')
    run_steps([], RunOptions((str(path),), str(tmp_path / "out")))
    answers = [entry.verdict for _, entry in ledger.why(tmp_path / "out", "a")]
    assert answers == ["kept", "dropped"]


def test_a_stream_that_cannot_be_written_says_so_once(tmp_path, capfd):
    draw = random.Random(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with (
            contextlib.suppress(OSError),
            RecordWriter(tmp_path / "a.jsonl.zst", "jsonl.zst") as writer,
        ):
            for number in range(2000):
                writer.write(Document(str(number), draw.randbytes(500).hex(), {}))
            pytest.fail("all was written")
        del writer
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_an_error_of_one_line_and_the_run_goes_on_with_room(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"text": f"{number:08}", "id": str(number)} for number in range(20_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-B", ROOT / "tools/curate.py", "dedup", "--near", "none", "--shard-mb", "0.1"]  # fmt: skip
    command += ["--input", path, "--output", tmp_path / "out", "--index", tmp_path / "index"]

    def run(limit):
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )

    for most in (20_000, 120_000):  # bytes of a file: less than a shard's, than dedup's decisions
        stopped = run(most)
        assert stopped.returncode == 2 and "Traceback" not in stopped.stderr, stopped.stderr
        assert "make room, and run the same command again" in stopped.stderr.splitlines()[-1]
    whole = run(resource.RLIM_INFINITY)
    assert whole.returncode == 0 and "20,000 kept + 0 dropped" in whole.stdout
    assert len(list((tmp_path / "index").glob("release-*"))) == 1


@pytest.mark.parametrize("kind", ["jsonl.zst", "jsonl.gz", "parquet"])
def test_what_is_written_is_read_as_it_was_or_refused(tmp_path, kind):
    draw = random.Random(1)
    words = ["def", "return", "self.value", "=", "(", "):", "if", "None", "1", "else", "for"]
    with RecordWriter(tmp_path / f"a.{kind}", kind) as writer:
        for number in range(200):
            writer.write(Document(str(number), " ".join(draw.choices(words, k=200)), {"n": number}))
        writer.close()
    content, whole = (tmp_path / f"a.{kind}").read_bytes(), read(tmp_path / f"a.{kind}")
    damaged = tmp_path / f"b.{kind}"
    num_refused = 0
    for _ in range(60):
        changed = bytearray(content)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        damaged.write_bytes(changed)
        try:
            assert (
                read(damaged) == whole
            )  # what is changed may be a hint, such as Parquet's statistics
        except DataError as error:
            assert str(damaged) in str(error) and "\n" not in str(error)
            num_refused += 1
    assert num_refused > 30


def test_a_line_far_above_the_cap_is_told_and_not_decoded(tmp_path):
    path = tmp_path / "in.jsonl"
    long = '{"id": "b", "text": "' + "x" * 2_000_000 + '"}'
    path.write_text('{"text": "x", "id": "a"}\n' + long + '\n{"text": "y"}\n')
    items = read(path, max_document_bytes=100_000)
    place = BadRecord("in.jsonl:2", "too long to be decoded, see --max-document-mb", "")
    assert items == [Document("a", "x", {}), place, Document("in.jsonl@1000031:1", "y", {})]
    assert len(read(path, max_document_bytes=1_000_000)[1].text) == 2_000_000
    options = RunOptions((str(path),), str(tmp_path / "out"), max_document_mb=0.1)
    totals = run_steps([], options)
    assert (totals.kept(), totals.bad) == (2, {place.reason: 1})
