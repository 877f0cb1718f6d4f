"""Runs that die and are started again go on bitwise from their last checkpoint.

How they die is scripted here; tests/tools/test_bench.py plays a life of drawn faults.
"""

import pytest
import torch

from megatron.benchmark.fault_injection import judge
from megatron.benchmark.fault_injection.case import CASES
from megatron.benchmark.fault_injection.fault import Fault
from megatron.benchmark.fault_injection.life import Life, Stage, live

TP2 = CASES["TP 2"]
LAST_RANK_FILE = "iter.tmp/rank_00001.safetensors"
SCRIPTS = {
    "one rank is killed": (
        "DP 2, sharded optimizer",
        [
            (1, Fault("forward", 5, "kill")),
            (1, Fault(f"write {LAST_RANK_FILE}", 5, "tear")),
            (0, Fault("fsync iter.tmp/metadata.json", 1, "lose data")),
            (0, Fault("collective all_reduce", 4, "kill")),
            (0, Fault("rename latest_checkpointed_iteration.txt.tmp", 1, "lose names")),
        ],
    ),
    "one rank stops, hangs, or has no disk": (
        "TP 2",
        [
            (1, Fault("forward", 9, "terminate")),
            (1, Fault("forward", 3, "stop")),
            (1, Fault(f"write {LAST_RANK_FILE}", 3, "full")),
            (0, Fault("fsync iter.tmp/state.json", 1, "broken")),
        ],
    ),
}


@pytest.fixture(scope="module")
def stage(nursery, corpus, tmp_path_factory) -> Stage:
    data = ("--tokenizer-file", corpus.tokenizer, "--train-data-path", corpus.train)
    flags = [*map(str, data), "--valid-data-path", str(corpus.valid)]
    return Stage(nursery, flags, tmp_path_factory.mktemp("lives"))


def _wrong(life: Life) -> list[str]:
    return [*life.problems, *(problem for one in life.attempts for problem in one.problems)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_dies_goes_on_bitwise(stage, script):
    case, faults = SCRIPTS[script]
    life = live(stage, CASES[case], script.replace(" ", "-"), faults)
    assert _wrong(life) == []
    assert [attempt.has_fired for attempt in life.attempts] == [True] * len(faults) + [False]


def test_a_checkpoint_that_is_off_by_one_bit_is_seen(stage):
    snapshot = stage.reference(TP2).snapshot(4)
    name, tensor = next(item for item in snapshot.tensors.items() if item[1].numel() > 1)
    other = tensor.clone()
    other.reshape(-1)[-1] = torch.nextafter(other.reshape(-1)[-1], torch.tensor(9.0))
    changed = judge.Snapshot(snapshot.state, {**snapshot.tensors, name: other})
    assert snapshot.difference(changed) == f"{name} differs"
    assert snapshot.difference(judge.Snapshot(dict(snapshot.state), dict(snapshot.tensors))) is None
