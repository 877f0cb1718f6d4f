"""A run that stops and starts again is bitwise the run that never stopped; what does not fit is refused."""

from pathlib import Path

import pytest
import torch

from megatron.checkpoint.reader import CheckpointReader
from megatron.errors import CheckpointError
from megatron.training.run_state import resume_config
from tests.training.runs import flags_of, parse, read_metrics, train_here

LAYOUT = "--tensor-model-parallel-size 2 --hidden-dropout 0.1 --attention-dropout 0.1"
CASES = {
    "tensor parallel with dropout": LAYOUT,
    "bf16, distributed optimizer": "--bf16 --use-distributed-optimizer",
    "fp16 with a loss scale": "--fp16 --initial-loss-scale 1048576 --loss-scale-window 3",
    "pipeline": "--pipeline-model-parallel-size 2",
    "grown batch": "--rampup-batch-size 4 2 24",
}


def _numbers(save: Path) -> list[tuple]:
    training, validation = read_metrics(save)
    rows = [
        (step, row["lm_loss"], row["grad_norm"], row["learning_rate"], row["consumed_samples"])
        for step, row in training.items()
    ]
    return [*rows, *validation.items()]


def _tensors(save: Path) -> dict[str, torch.Tensor]:
    (folder,) = sorted(save.glob("iter_*"))[-1:]
    reader = CheckpointReader.open(folder)
    return {name: reader.read(name) for name in reader.names()}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_run_is_bitwise_the_same(world, corpus, tmp_path, case):
    def flags(name: str, extra: str = "") -> str:
        text = flags_of(corpus, tmp_path / name, f"{CASES[case]} --log-interval 3 {extra}")
        if "rampup" in text:
            text = text.replace("--train-iters 20", "--train-samples 100")
            text = text.replace("--lr-warmup-iters 2", "--lr-warmup-samples 10")
        return text

    assert world(2).run(train_here, flags("whole")) == ["finished"] * 2
    assert world(2).run(train_here, flags("parts", "--exit-interval 7")) == ["stopped"] * 2
    assert world(2).run(train_here, flags("parts")) == ["finished"] * 2
    assert _numbers(tmp_path / "parts") == _numbers(tmp_path / "whole")
    parts, whole = _tensors(tmp_path / "parts"), _tensors(tmp_path / "whole")
    assert list(parts) == list(whole)
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """The folder of a run that made two checkpoints."""
    save = tmp_path_factory.mktemp("trained")
    world(1).run(train_here, flags_of(corpus, save, "--train-iters 4 --save-interval 2"))
    return save


def test_run_keeps_everything_an_export_needs(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"iter_0000002", "iter_0000004", "tokenizer", "metrics.jsonl", "tensorboard"} <= names
    assert (trained / "latest_checkpointed_iteration.txt").read_text().strip() == "4"


def test_a_complete_run_starts_and_ends_without_a_step(world, corpus, trained):
    before = (trained / "metrics.jsonl").read_text()
    flags = flags_of(corpus, trained, "--train-iters 4")
    assert world(1).run(train_here, flags) == ["finished"]
    assert (trained / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--hidden-size 64", "hidden_size = 32, this run 64"),
        ("--attention-head-type multihead", "query_groups = 1, this run 4"),
        ("--seed 7", "--seed 1234"),
        ("--lr 0.5", "lr = 0.01, this run 0.5; give the old value, --override-opt_param"),
    ],
)
def test_a_run_that_does_not_fit_its_checkpoint_is_refused(corpus, trained, extra, message):
    config = _with_vocabulary(parse(flags_of(corpus, trained, extra)))
    with pytest.raises(CheckpointError, match=message):
        resume_config(config)


@pytest.mark.parametrize(
    "extra",
    [
        "--seed 7 --no-load-rng",
        "--lr 0.5 --override-opt_param-scheduler",
        "--lr 0.5 --seed 7 --finetune",
    ],
)
def test_a_flag_allows_the_difference(corpus, trained, extra):
    config = _with_vocabulary(
        parse(flags_of(corpus, trained, extra + " --override-opt_param-scheduler"))
    )
    resumed, path = resume_config(config)
    assert path == trained / "iter_0000004"
    assert resumed.optimizer.lr == config.optimizer.lr


def test_the_schedule_can_come_from_the_checkpoint(corpus, trained):
    flags = flags_of(corpus, trained, "--lr 0.5 --use-checkpoint-opt_param-scheduler")
    resumed, _ = resume_config(_with_vocabulary(parse(flags)))
    assert resumed.optimizer.lr == 0.01


def test_finetune_takes_weights_and_starts_at_zero(world, corpus, trained, tmp_path):
    flags = flags_of(corpus, tmp_path, f"--train-iters 2 --lr 5e-3 --load {trained} --finetune")
    assert world(1).run(train_here, flags) == ["finished"]
    _, validation = read_metrics(tmp_path)
    _, before = read_metrics(trained)
    assert validation[0] == before[4]
    assert sorted(read_metrics(tmp_path)[0]) == [1, 2]


@pytest.mark.parametrize("flag", ["--exit-on-missing-checkpoint", "--finetune"])
def test_a_missing_checkpoint_is_an_error_when_asked_for(corpus, tmp_path, flag):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        resume_config(parse(flags_of(corpus, tmp_path, flag)))
    assert resume_config(parse(flags_of(corpus, tmp_path)))[1] is None


def _with_vocabulary(config):
    from megatron.training.inputs import open_inputs

    return open_inputs(config, 1).config
