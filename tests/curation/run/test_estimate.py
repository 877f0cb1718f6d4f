"""What a dry run predicts against what the run then does."""

import json
import random

import pytest
import zstandard

pytest.importorskip("megatron.curation._minhash", reason="csrc/ is not compiled: make env")

from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.run.document import Drop, Keep, Stage
from megatron.curation.run.estimate import estimate
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps

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
