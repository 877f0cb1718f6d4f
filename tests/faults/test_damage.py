"""Damaged checkpoints: a run that is started on one takes an older one, or has read every bit as it was."""

import itertools
import shutil
from collections import Counter
from pathlib import Path

import pytest

from megatron.benchmark.fault_injection.life import Stage
from megatron.benchmark.fault_injection.mutation import (
    AT_ONCE,
    ITERATIONS,
    WRONG,
    Damage,
    Mutation,
    all_cuts,
    apply,
    draw_mutations,
    to_markdown,
)
from megatron.checkpoint.layout import CONFIG_FILE, TRACKER, checkpoint_folder, rank_file
from tests.checkpoint.seal import seal


@pytest.fixture(scope="module")
def damage(nursery, corpus, tmp_path_factory) -> Damage:
    data = ("--tokenizer-file", corpus.tokenizer, "--train-data-path", corpus.train)
    flags = [*map(str, data), "--valid-data-path", str(corpus.valid)]
    return Damage(Stage(nursery, flags, tmp_path_factory.mktemp("damage")))


def test_an_older_checkpoint_is_taken_or_damage_is_none(damage):
    cuts = list(all_cuts(damage.target))
    drawn = draw_mutations(damage.target, "1")
    mutations = [*cuts[::5], *itertools.islice(drawn, 12), cuts[-1]]
    results = []
    for first in range(0, len(mutations), AT_ONCE):
        results += damage.test(mutations[first : first + AT_ONCE])
    wrong = [result for result in results if result.outcome in WRONG]
    assert not wrong, wrong
    outcomes = Counter(result.outcome for result in results)
    assert outcomes["another taken"] > 0.7 * len(mutations)
    assert to_markdown(results).count("\n") > 2


def test_every_file_is_damaged_in_every_way(damage):
    cuts = list(all_cuts(damage.target))
    names = {path.name for path in damage.target.iterdir()} | {TRACKER}
    for kind in ("cut", "grown", "removed", "doubled"):
        assert {mutation.file for mutation in cuts if mutation.kind == kind} == names
    assert {rank_file(0), rank_file(1)} < names


def test_a_checkpoint_whose_tensors_differ_is_seen(damage, monkeypatch):
    """What a run loads is compared: of a changed value under hashes that fit it nothing else would tell."""

    def change(mutation: Mutation, root: Path) -> bool:
        folder = checkpoint_folder(root, ITERATIONS[-1])
        path = folder / mutation.file
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        seal(folder)
        return True

    monkeypatch.setattr("megatron.benchmark.fault_injection.mutation.apply", change)
    (result,) = damage.test([Mutation("cut", rank_file(0), 0)])
    assert result.outcome == "SILENT"


def test_a_mutation_that_changes_nothing_is_known(damage, tmp_path):
    root = shutil.copytree(damage.pristine, tmp_path / "run")
    size = (damage.target / CONFIG_FILE).stat().st_size
    assert not apply(Mutation("cut", CONFIG_FILE, size), root)
    assert apply(Mutation("cut", CONFIG_FILE, size - 1), root)
