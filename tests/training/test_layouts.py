"""One model under every layout: the losses of 12 steps equal those of one process.

Real source code, multi-query attention, fill-in-the-middle, gradient accumulation, an odd vocabulary, validation. More
layouts are in `test_matrix`, for fewer steps.
"""

import itertools

import pytest

from tests.training import runs
from tests.training.runs import flags_of, read_metrics, train_here

NUM_STEPS = 12
SIZE = f"--train-iters {NUM_STEPS} --global-batch-size 4"
TP2 = "--tensor-model-parallel-size 2"
PP2 = "--pipeline-model-parallel-size 2"
LAYOUTS = [
    ("TP2", 2, f"{TP2} --micro-batch-size 2"),
    ("TP2 SP", 2, f"{TP2} --sequence-parallel --micro-batch-size 2"),
    ("PP2", 2, PP2),
    (
        "PP2 interleaved, 0 + 1 + 1 + 1 + 1 + 0 layers",
        2,
        f"{PP2} --num-layers-per-virtual-pipeline-stage 1 "
        "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
    ),
    ("PP2 ZBV", 2, f"{PP2} --pipeline-schedule zbv"),
    ("DP2", 2, ""),
    ("TP2 PP2", 4, f"{TP2} {PP2} --micro-batch-size 2"),
    (
        "TP2 PP2 DP2",
        8,
        f"{TP2} {PP2} --sequence-parallel --use-distributed-optimizer",
    ),
]


@pytest.fixture(scope="module")
def alone(world, corpus, tmp_path_factory):
    """The metrics of one process."""
    save = tmp_path_factory.mktemp("alone")
    world(1).run(train_here, flags_of(corpus, save, SIZE))
    return read_metrics(save)


def test_one_process_learns(alone):
    training, validation = alone
    assert sorted(training) == list(range(1, NUM_STEPS + 1))
    assert sorted(validation) == [0, 10, NUM_STEPS]
    assert validation[NUM_STEPS] < validation[0] - 0.5


@pytest.mark.parametrize(("name", "size", "layout"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_losses_equal_one_process(world, corpus, alone, tmp_path, name, size, layout):
    outcomes = world(size).run(train_here, flags_of(corpus, tmp_path, f"{SIZE} {layout}"))
    assert outcomes == ["finished"] * size
    training, validation = read_metrics(tmp_path)
    for step in range(1, NUM_STEPS + 1):
        assert training[step]["lm_loss"] == pytest.approx(alone[0][step]["lm_loss"], abs=1e-4)
        assert training[step]["grad_norm"] == pytest.approx(alone[0][step]["grad_norm"], rel=1e-3)
    assert validation == {step: pytest.approx(loss, abs=1e-4) for step, loss in alone[1].items()}


def test_a_run_continues_under_another_split_and_schedule(world, corpus, alone, tmp_path):
    for layout in ("--decoder-last-pipeline-num-layers 1", "--pipeline-schedule zbv"):
        flags = flags_of(corpus, tmp_path, f"{SIZE} {PP2} {layout} --exit-interval 5")
        assert world(2).run(train_here, flags) == ["stopped"] * 2
    chunks = f"{SIZE} {PP2} --num-virtual-stages-per-pipeline-rank 2"
    assert world(2).run(train_here, flags_of(corpus, tmp_path, chunks)) == ["finished"] * 2
    training, validation = read_metrics(tmp_path)
    assert {step: row["lm_loss"] for step, row in training.items()} == {
        step: pytest.approx(row["lm_loss"], abs=1e-4) for step, row in alone[0].items()
    }
    assert validation == {step: pytest.approx(loss, abs=1e-4) for step, loss in alone[1].items()}


# Steps of 4, 6 and 8 micro-batches, dropout, and six layers, which a V of four stages can hold unevenly.
GROWING = """--num-layers 6 --train-samples 40 --rampup-batch-size 4 2 15 --eval-interval 3
--lr-warmup-iters 0 --hidden-dropout 0.1 --attention-dropout 0.1"""
ENDS = "--decoder-first-pipeline-num-layers 1 --decoder-last-pipeline-num-layers 1"


@pytest.fixture(scope="module")
def grown_alone(world, corpus, tmp_path_factory):
    """The metrics of one process whose batch grows."""
    save = tmp_path_factory.mktemp("grown_alone")
    world(1).run(train_here, growing_flags(corpus, save))
    training, validation = read_metrics(save)
    consumed = [0, *(row["consumed_samples"] for row in training.values())]
    assert {after - before for before, after in itertools.pairwise(consumed)} == {4, 6, 8}
    return training, validation


def growing_flags(corpus, save, extra=""):
    flags = flags_of(corpus, save, f"{GROWING} {extra}")
    return flags.replace(f"--train-iters {runs.NUM_STEPS} ", "")


@pytest.mark.parametrize(
    "layout",
    [
        "",
        "--num-virtual-stages-per-pipeline-rank 3",
        f"--pipeline-schedule zbv {ENDS}",
        f"--pipeline-schedule dualpipev {ENDS}",
    ],
)
def test_a_growing_batch_with_dropout_equals_one_process(
    world, corpus, grown_alone, tmp_path, layout
):
    world(2).run(train_here, growing_flags(corpus, tmp_path, f"{PP2} {layout}"))
    training, validation = read_metrics(tmp_path)
    for step, row in grown_alone[0].items():
        assert training[step]["lm_loss"] == pytest.approx(row["lm_loss"], abs=1e-4)
        assert training[step]["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)
    assert validation == {
        step: pytest.approx(loss, abs=1e-4) for step, loss in grown_alone[1].items()
    }
