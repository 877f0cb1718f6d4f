"""One model under every layout: the losses of 20 steps equal those of one process.

Real source code, multi-query attention, fill-in-the-middle, gradient accumulation, an odd vocabulary.
"""

import pytest

from tests.training.runs import NUM_STEPS, flags_of, read_metrics, train_here

TP2 = "--tensor-model-parallel-size 2"
PP2 = "--pipeline-model-parallel-size 2"
LAYOUTS = [
    ("TP2", 2, TP2),
    ("TP2 SP", 2, f"{TP2} --sequence-parallel"),
    ("PP2", 2, PP2),
    ("PP2 interleaved", 2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    ("PP2, 1 + 3 layers", 2, f"{PP2} --decoder-first-pipeline-num-layers 1"),
    (
        "PP2 interleaved, 0 + 1 + 1 + 1 + 1 + 0 layers",
        2,
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 "
        "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    ),
    ("DP2", 2, ""),
    ("DP2 distributed optimizer", 2, "--use-distributed-optimizer"),
    ("TP2 PP2", 4, f"{TP2} {PP2}"),
    (
        "DP4 in two copies",
        4,
        "--use-distributed-optimizer --num-distributed-optimizer-instances 2",
    ),
    ("PP4", 4, "--pipeline-model-parallel-size 4"),
    ("TP2 PP2 DP2", 8, f"{TP2} {PP2} --sequence-parallel --use-distributed-optimizer"),
]


@pytest.fixture(scope="module")
def alone(world, corpus, tmp_path_factory):
    """The metrics of one process."""
    save = tmp_path_factory.mktemp("alone")
    world(1).run(train_here, flags_of(corpus, save))
    return read_metrics(save)


def test_one_process_learns(alone):
    training, validation = alone
    assert sorted(training) == list(range(1, NUM_STEPS + 1))
    assert sorted(validation) == [0, 10, 20]
    assert validation[20] < validation[0] - 0.5


@pytest.mark.parametrize(("name", "size", "layout"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_losses_equal_one_process(world, corpus, alone, tmp_path, name, size, layout):
    outcomes = world(size).run(train_here, flags_of(corpus, tmp_path, layout))
    assert outcomes == ["finished"] * size
    training, validation = read_metrics(tmp_path)
    for step in range(1, NUM_STEPS + 1):
        assert training[step]["lm_loss"] == pytest.approx(alone[0][step]["lm_loss"], abs=1e-4)
        assert training[step]["grad_norm"] == pytest.approx(alone[0][step]["grad_norm"], rel=1e-3)
    assert validation == {step: pytest.approx(loss, abs=1e-4) for step, loss in alone[1].items()}


def test_a_run_continues_under_another_split(world, corpus, alone, tmp_path):
    uneven = f"{PP2} --decoder-last-pipeline-num-layers 1 --exit-interval 10"
    assert world(2).run(train_here, flags_of(corpus, tmp_path, uneven)) == ["stopped"] * 2
    chunks = f"{PP2} --num-virtual-stages-per-pipeline-rank 2"
    assert world(2).run(train_here, flags_of(corpus, tmp_path, chunks)) == ["finished"] * 2
    training, validation = read_metrics(tmp_path)
    assert {step: row["lm_loss"] for step, row in training.items()} == {
        step: pytest.approx(row["lm_loss"], abs=1e-4) for step, row in alone[0].items()
    }
    assert validation == {step: pytest.approx(loss, abs=1e-4) for step, loss in alone[1].items()}
