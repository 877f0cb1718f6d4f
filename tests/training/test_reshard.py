"""A run goes on in another layout as if it had never changed: weights, moments and samples come along.

Tensors in any layout are the business of tests/checkpoint; these are whole runs, whose losses would tell of a moment
that was lost, a bias correction that began anew, or samples read twice.
"""

import shutil

import pytest

from tests.training.runs import flags_of, read_metrics, train_here

SHARDED = "--use-distributed-optimizer"
SAVED_AT, NUM_STEPS = 2, 8
# A batch that 1, 2, 3 and 4 data parallel processes divide.
FLAGS = f"--train-iters {NUM_STEPS} --global-batch-size 12 --eval-iters 0"
TP2_PP2_DP2 = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --micro-batch-size 2"
LAYOUTS = [
    ("TP1", 1, "--micro-batch-size 6"),
    ("TP4", 4, "--tensor-model-parallel-size 4 --micro-batch-size 6"),
    ("PP4", 4, "--pipeline-model-parallel-size 4 --micro-batch-size 3"),
    (
        "PP2 ZBV",
        2,
        "--pipeline-model-parallel-size 2 --pipeline-schedule zbv --micro-batch-size 3",
    ),
    ("DP3", 3, "--micro-batch-size 2"),
    ("DP3 distributed optimizer", 3, f"{SHARDED} --micro-batch-size 2"),
    ("DP4 in two copies", 4, f"{SHARDED} --num-distributed-optimizer-instances 2"),
    ("CP2 distributed optimizer", 2, f"{SHARDED} --context-parallel-size 2 --micro-batch-size 6"),
]


@pytest.fixture(scope="module")
def sharded(world, corpus, tmp_path_factory):
    """A run at TP2 PP2 DP2 with a distributed optimizer, from beginning to end, with a checkpoint on its way."""
    save = tmp_path_factory.mktemp("sharded")
    flags = f"{FLAGS} {TP2_PP2_DP2} {SHARDED} --save-interval {SAVED_AT}"
    assert world(8).run(train_here, flags_of(corpus, save, flags)) == ["finished"] * 8
    return save


def _assert_goes_on(world, corpus, unchanged, save, size, layout):
    folder = f"iter_{SAVED_AT:07d}"
    shutil.copytree(unchanged / folder, save / folder)
    (save / "latest_checkpointed_iteration.txt").write_text(f"{SAVED_AT}\n")
    outcomes = world(size).run(train_here, flags_of(corpus, save, f"{FLAGS} {layout}"))
    assert outcomes == ["finished"] * size
    expected, _ = read_metrics(unchanged)
    found, _ = read_metrics(save)
    assert sorted(found) == list(range(SAVED_AT + 1, NUM_STEPS + 1))
    for step, line in found.items():
        assert line["consumed_samples"] == expected[step]["consumed_samples"] == 12 * step
        assert line["learning_rate"] == expected[step]["learning_rate"]
        assert line["lm_loss"] == pytest.approx(expected[step]["lm_loss"], abs=1e-4)
        assert line["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(("name", "size", "layout"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_a_run_goes_on_in_another_layout(world, corpus, sharded, tmp_path, name, size, layout):
    _assert_goes_on(world, corpus, sharded, tmp_path, size, layout)


def test_moments_that_were_whole_go_on_in_shards(world, corpus, tmp_path):
    unchanged = tmp_path / "whole"
    flags = f"{FLAGS} --micro-batch-size 6 --save-interval {SAVED_AT}"
    assert world(2).run(train_here, flags_of(corpus, unchanged, flags)) == ["finished"] * 2
    layout = f"{SHARDED} --micro-batch-size 2"
    _assert_goes_on(world, corpus, unchanged, tmp_path / "parts", 3, layout)
