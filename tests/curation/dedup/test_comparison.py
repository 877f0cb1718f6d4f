"""Duplicates: shingles as the original's, signatures and recall as theory has it, the same answer for any number of workers."""

import ast
import json
import os
import random
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron.curation.dedup.comparison import DedupConfig, dedup_comparison
from megatron.curation.dedup.fingerprints import RELEASED, Scheme, compute, rank_of
from megatron.curation.run import ledger
from megatron.curation.run.document import Document
from megatron.curation.run.options import RunOptions
from megatron.curation.run.passes import run_steps
from megatron.curation.run.record_io import plan_sources
from megatron.data.publish import open_locked
from megatron.errors import ConfigError, DataError
from tests.curation.entries import entries_of

_minhash = pytest.importorskip(
    "megatron.curation._minhash", reason="csrc/ is not compiled: make env"
)
duplicates = pytest.importorskip("megatron.curation.dedup.duplicates")
LEXICAL, BIGCODE = 0, 1


def original_shingles(text):
    """What BigCode's near-deduplication makes of a text, stated independently."""
    tokens = re.split("[^A-Za-z_0-9]", text)
    return {" ".join(tokens[i : i + 5]) for i in range(len(tokens) - 4)}


def words(draw, count):
    return [f"w{draw.randrange(10**6)}" for _ in range(count)]


def similar_pair(draw, similarity, count=400):
    """Two texts whose 5-gram sets have about a given Jaccard similarity, by disjoint blocks, and the exact value."""
    shared = round(2 * similarity / (1 + similarity) * count)
    common = words(draw, shared)
    first = " ".join(common + words(draw, count - shared))
    second = " ".join(common + words(draw, count - shared))
    a, b = (set(_minhash.shingle_hashes(text, LEXICAL, 5).tolist()) for text in (first, second))
    return first, second, len(a & b) / len(a | b)


def run(tmp_path, rows, name="out", workers=1, shard_mb=0.02, overwrite=False, **config):
    path = tmp_path / f"{name}.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = RunOptions(
        (str(path),), str(tmp_path / name), workers, "jsonl", shard_mb=shard_mb, overwrite=overwrite
    )
    totals = run_steps([dedup_comparison(DedupConfig(**config))], options)
    kept = [
        json.loads(line)["id"]
        for file in sorted((tmp_path / name).glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return kept, totals


@pytest.fixture
def published(monkeypatch):
    """Files and folders that were on disk, with all in them, when they got their names; and folders forced after."""
    found, forced = [], set()
    fsync, rename = os.fsync, Path.rename

    def seen_fsync(descriptor):
        forced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def seen_rename(path, target):
        if {path, *path.rglob("*")} <= forced:
            found.append(target)
        forced.discard(target.parent)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "rename", seen_rename)
    return lambda: [path for path in found if path.parent in forced]


def test_fingerprints_are_on_disk_before_they_have_their_name(tmp_path, published):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a b c d e f", "id": "a"}\n')
    (source,) = plan_sources([path], shard_bytes=1 << 20, text_key="text", id_key="id")
    compute(source, Scheme(), tmp_path / "00000", 1000)
    assert published() == [tmp_path / "00000"]


def test_a_release_is_on_disk_before_it_has_its_name(tmp_path, published):
    index = tmp_path / "index"
    run(tmp_path, [{"text": "a b c d e f", "id": "a"}], index=str(index))
    (release,) = index.glob("release-*")
    assert published() == [release]


def test_bigcode_mode_has_exactly_the_original_shingles():
    draw = random.Random(1)
    alphabet = "abAB_09 \n\t.,()é中\U0001f600"
    texts = ["", "a", "a b c d", "a b c d e", "def f(x):\n    return  x\n" * 3]
    texts += ["".join(draw.choices(alphabet, k=draw.randrange(120))) for _ in range(200)]
    hashed = [set(_minhash.shingle_hashes(text, BIGCODE, 5).tolist()) for text in texts]
    expected = [original_shingles(text) for text in texts]
    assert [len(found) for found in hashed] == [len(found) for found in expected]
    for (a, b), (c, d) in zip(pairwise(hashed), pairwise(expected), strict=True):
        assert len(a & b) == len(c & d)


def test_lexical_mode_sees_words_alone_and_every_ideograph():
    def shingles(text):
        return _minhash.shingle_hashes(text, LEXICAL, 5).tolist()

    assert shingles("a b c d e f") == shingles("a(b, c)\n\t\td.e -> f;")
    assert len(shingles("une été naïve à la mer")) == 2
    assert len(shingles("去重复代码。文")) == 2
    assert shingles("a b c d") == []


def test_signatures_estimate_jaccard_with_the_error_theory_gives():
    draw = random.Random(2)
    errors, variances = [], []
    for _ in range(150):
        first, second, exact = similar_pair(draw, draw.uniform(0.1, 0.95), 300)
        signatures, _ = _minhash.signatures([first, second], LEXICAL, 5, 256, 7)
        errors.append((signatures[0] == signatures[1]).mean() - exact)
        variances.append(exact * (1 - exact) / 256)
    assert abs(np.mean(errors)) < 4 * np.sqrt(np.mean(variances) / len(errors))
    assert np.mean(np.square(errors)) == pytest.approx(np.mean(variances), rel=0.4)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_recall_follows_the_analytic_curve(similarity):
    draw = random.Random(int(similarity * 100))
    pairs = [similar_pair(draw, similarity, 150) for _ in range(400)]
    texts = [text for first, second, _ in pairs for text in (first, second)]
    signatures, _ = _minhash.signatures(texts, LEXICAL, 5, 256, 3)
    keys = _minhash.band_keys(signatures, 25, 10)
    found = (keys[0::2] == keys[1::2]).any(axis=1).mean()
    expected = np.mean([1 - (1 - s**10) ** 25 for _, _, s in pairs])
    # four standard deviations of a binomial share
    assert abs(found - expected) <= 4 * np.sqrt(max(expected * (1 - expected), 0.002) / len(pairs))


def corpus():
    draw = random.Random(5)
    rows = []
    for family in range(40):
        base = words(draw, 400)
        for member in range(draw.randrange(1, 5)):
            text = list(base)
            for _ in range(member):
                text[draw.randrange(400)] = f"x{draw.random()}"
            rows.append(
                {"id": f"{family}-{member}", "text": " ".join(text), "stars": draw.randrange(3)}
            )
    rows += [{"id": f"short-{i}", "text": f"a = {i % 5}"} for i in range(20)]
    draw.shuffle(rows)
    return rows


def test_one_commit_of_each_file_is_kept_the_newest_and_those_of_no_known_file(tmp_path):
    rows = [
        {"id": f"{repo}-{path}-{day}", "text": f"{repo}{path}{day}", "repo": repo, "path": path, "date": f"2023-01-0{day}"}
        for repo in ("a/b", "a/c")
        for path in ("x.py", "y.py")
        for day in (2, 3, 1)
    ]  # fmt: skip
    rows += [{"id": f"none-{number}", "text": "the same", "repo": "a/b"} for number in range(2)]
    kept, totals = run(tmp_path, rows, by=("repo", "path"))
    assert kept == [row["id"] for row in rows if row["id"].endswith("-3") or "none" in row["id"]]
    assert totals.by_rule()[0][:2] == ("dedup: same-repo-path", 8)
    entry = ledger.find_entries(tmp_path / "out", "a/b-x.py-1")[-1]
    assert entry.detail == "a/b-x.py-3"


def test_same_result_for_1_2_and_8_workers_and_any_shards(tmp_path):
    rows = corpus()
    first, totals = run(tmp_path, rows, "one", 1)
    assert totals.dropped() > 30
    ledgers = [entries_of(tmp_path / "one")]
    for workers, shard_mb in ((2, 0.02), (8, 0.02), (2, 1.0)):
        name = f"w{workers}-{shard_mb}"
        again, _ = run(tmp_path, rows, name, workers, shard_mb)
        assert again == first
        ledgers.append(entries_of(tmp_path / name))
    assert all(entries == ledgers[0] for entries in ledgers)


def test_result_does_not_depend_on_how_many_ranges_keys_are_looked_at_in(tmp_path, monkeypatch):
    rows = corpus()
    whole, totals = run(tmp_path, rows, "whole")
    monkeypatch.setattr(duplicates, "RANGE_ENTRIES", 20)
    cut, again = run(tmp_path, rows, "cut", 2)
    assert cut == whole and again.by_rule() == totals.by_rule()


def test_each_family_keeps_its_best_and_every_drop_names_a_kept_one_that_it_resembles(tmp_path):
    rows = corpus()
    kept, _ = run(tmp_path, rows)
    stars = {row["id"]: row.get("stars", 0) for row in rows}
    for entry in entries_of(tmp_path / "out"):
        if entry.verdict == "dropped":
            assert entry.detail in kept and entry.value >= 0.7
            assert entry.detail.split("-")[0] == entry.id.split("-")[0]
            assert stars[entry.detail] >= stars[entry.id]


def test_short_files_are_duplicates_only_if_equal(tmp_path):
    kept, totals = run(tmp_path, [{"id": f"{i}", "text": f"a = {i % 3}"} for i in range(9)])
    assert len(kept) == 3
    assert totals.by_rule() == [("dedup: exact-duplicate", 6, 30)]
    assert (
        len(run(tmp_path, [{"id": "a", "text": "x y"}, {"id": "b", "text": "y x"}], "two")[0]) == 2
    )


def test_survivor_is_chosen_by_licence_then_stars_then_date():
    def rank(**metadata):
        return rank_of(Document("1", "", metadata))

    ordered = [
        rank(),
        rank(date="2020-01-01"),
        rank(date="2021-01-01T00:00:00Z"),
        rank(stars=1),
        rank(max_stars_count=10),
        rank(license="GPL-3.0-only"),
        rank(license="MIT"),
        rank(license=["GPL-2.0", "MIT"], date=1_600_000_000),
        rank(license="MIT", stars=10**12, date="9999-01-01"),
        RELEASED,
    ]
    assert ordered == sorted(set(ordered))
    assert rank(date="yesterday", stars="many") == rank()
    assert rank(date=float("nan"), stars=float("nan")) == rank(date=-float("inf")) == rank()
    assert rank(stars=float("inf")) == rank(stars=10**12)


def chain():
    """Five texts, each 0.89 like the next and 0.78 like the one after that."""
    draw = random.Random(8)
    long = words(draw, 1000)
    return [
        {"id": str(i), "text": " ".join(long[i * 24 : i * 24 + 400]), "stars": 9 - i}
        for i in range(5)
    ]


def test_file_unlike_every_kept_one_stays_unless_one_of_a_group_is_asked_for(tmp_path):
    rows = chain()
    assert run(tmp_path, rows, "similar", threshold=0.83)[0] == ["0", "2", "4"]
    assert run(tmp_path, rows, "one", threshold=0.83, survivors="one")[0] == ["0"]
    assert len(run(tmp_path, rows, "none", near="none")[0]) == 5


def test_index_drops_what_an_earlier_run_kept_and_can_be_repeated(tmp_path):
    rows = corpus()
    index = str(tmp_path / "index")
    old, new = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    first, _ = run(tmp_path, old, "old", index=index)
    second, _ = run(tmp_path, new, "new", index=index, workers=2)
    whole, _ = run(tmp_path, rows, "whole")
    families = {id.split("-")[0] for id in first}
    assert second and not families & {
        id.split("-")[0] for id in second if not id.startswith("short")
    }
    assert {id.split("-")[0] for id in first + second} == {id.split("-")[0] for id in whole}
    (tmp_path / "new/totals.json").unlink()
    (tmp_path / "new/shards/0-00000.json").unlink()
    assert run(tmp_path, new, "new", index=index)[0] == second
    with pytest.raises(ConfigError, match=r"--index .* was made with"):
        run(tmp_path, new, "other", index=index, seed=5)


def test_the_same_texts_replace_what_they_added_to_an_index_wherever_they_lie(tmp_path):
    rows = corpus()
    index = str(tmp_path / "index")
    first, _ = run(tmp_path, rows, "first", index=index)
    (tmp_path / "index/.release-0.tmp").mkdir()  # of a run that was killed
    again, _ = run(tmp_path, rows, "again", index=index, shard_mb=1)
    assert not list((tmp_path / "index").glob("*.tmp"))
    assert again == first and len(list((tmp_path / "index").glob("release-*"))) == 1
    with (
        open_locked(tmp_path / "index/.lock"),
        pytest.raises(DataError, match="is being written by another process"),
    ):
        run(tmp_path, rows[:9], "third", index=index)


def test_decisions_hold_a_part_of_the_documents_at_a_time_and_their_place_on_disk(tmp_path):
    count = 1 << 20
    tracemalloc.start()
    decisions = duplicates.Decisions.create(tmp_path, count)
    decisions.resolve(None, threshold=0.7, is_one_kept=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    for path in tmp_path.iterdir():  # a hole in a file ends the process where the disk is full
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size > count


def edited(draw, text, rate):
    """Change so many of the lines of a text as a next version would: drop, repeat, or rename in them."""
    lines = []
    for line in text.splitlines():
        if draw.random() >= rate:
            lines.append(line)
        elif draw.random() < 0.5:
            lines += [line, re.sub(r"\b[a-z]\w+", f"v{draw.randrange(10**6)}", line)]
    return "\n".join(lines)


def test_recall_on_versions_of_real_files_follows_the_analytic_curve():
    draw = random.Random(11)
    paths = sorted(Path(ast.__file__).parent.glob("*.py"))
    sources = [path.read_text("utf-8", "replace")[:6000] for path in paths]
    texts, similarities = [], []
    for number in range(800):
        text = sources[number % len(sources)]
        other = edited(draw, text, draw.uniform(0.02, 0.5))
        sets = original_shingles(text), original_shingles(other)
        texts += [text, other]
        similarities.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    exact = np.array(similarities)
    expected = 1 - (1 - exact**10) ** 25
    signatures, _ = _minhash.signatures(texts, BIGCODE, 5, 256, 1)
    keys = _minhash.band_keys(signatures, 25, 10)
    found = (keys[0::2] == keys[1::2]).any(axis=1)
    for low, high in ((0.3, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1)):
        chosen = (exact >= low) & (exact < high)
        assert chosen.sum() > 50
        variance = (expected * (1 - expected))[chosen].mean()
        error = found[chosen].mean() - expected[chosen].mean()
        assert abs(error) <= 4 * np.sqrt(max(variance, 0.002) / chosen.sum()), (low, error)


def test_bands_that_do_not_fit_the_signature_are_refused():
    with pytest.raises(ConfigError, match="--bands 26 x --rows 10 is more than the 256"):
        dedup_comparison(DedupConfig(bands=26))
