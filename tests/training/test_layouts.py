"""One model under every layout: the losses of 20 steps equal those of one process, and a resume is bitwise.

Real source code, multi-query attention, fill-in-the-middle, gradient accumulation, an odd vocabulary.
"""

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron import cli
from megatron.config import Config
from megatron.parallel.context import ParallelContext
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.run_state import resume_config
from megatron.training.train import train
from tests.training.conftest import Corpus

NUM_STEPS = 20
LAYOUTS = {
    "TP2": "--tensor-model-parallel-size 2",
    "TP2 sequence parallel": "--tensor-model-parallel-size 2 --sequence-parallel",
    "PP2": "--pipeline-model-parallel-size 2",
    "DP2": "",
    "DP2 distributed optimizer": "--use-distributed-optimizer",
    "TP2 PP2": "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2",
    "PP2 interleaved": "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
    "PP4": "--pipeline-model-parallel-size 4",
    "TP2 PP2 DP2": "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 "
    "--sequence-parallel --use-distributed-optimizer",
}
SIZES = {
    name: 4 if name in ("TP2 PP2", "PP4") else 8 if "DP2" in name and "TP2" in name else 2
    for name in LAYOUTS
}


def _flags(corpus: Corpus, save: Path, extra: str) -> str:
    return f"""--num-layers 4 --hidden-size 32 --num-attention-heads 4
    --attention-head-type multiquery --hidden-dropout 0 --attention-dropout 0
    --seq-length 32 --max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8
    --lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine --lr-warmup-iters 2 --weight-decay 0.1
    --train-iters {NUM_STEPS} --eval-interval 10 --eval-iters 2 --log-interval 1
    --make-vocab-size-divisible-by 16 --fim-rate 0.5 --num-workers 0
    --tokenizer-file {corpus.tokenizer} --train-data-path {corpus.train}
    --valid-data-path {corpus.valid} --save {save} --load {save} {extra}"""


def _parse(flags: str) -> Config:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    return cli.config_from(cli.parse_known(parser, flags.split()))


def _train(rank: int, flags: str) -> str:
    """Build and train on the world this process is in."""
    world_size = dist.get_world_size()
    inputs = open_inputs(_parse(flags), world_size)
    config, checkpoint = resume_config(inputs.config)
    import torch

    context = ParallelContext.create(config.parallel, world_size, torch.device("cpu"))
    run = build_run(config, inputs, context, checkpoint)
    outcome = train(run)
    if run.writer is not None:
        run.writer.close()
    return outcome


def _read(save: Path) -> tuple[dict[int, dict], dict[int, float]]:
    lines = [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]
    training = {line["iteration"]: line for line in lines if "validation" not in line}
    validation = {line["iteration"]: line["lm_loss"] for line in lines if "validation" in line}
    return training, validation


@pytest.fixture(scope="module")
def alone(world, corpus, tmp_path_factory):
    """The metrics of one process."""
    save = tmp_path_factory.mktemp("alone")
    world(1).run(_train, _flags(corpus, save, ""))
    return _read(save)


def test_one_process_learns(alone):
    training, validation = alone
    assert sorted(training) == list(range(1, NUM_STEPS + 1))
    assert sorted(validation) == [0, 10, 20]
    assert validation[20] < validation[0] - 1.0


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_equal_one_process(world, corpus, alone, tmp_path, name):
    outcomes = world(SIZES[name]).run(_train, _flags(corpus, tmp_path, LAYOUTS[name]))
    assert set(outcomes) == {"finished"}
    training, validation = _read(tmp_path)
    for step in range(1, NUM_STEPS + 1):
        assert training[step]["lm_loss"] == pytest.approx(alone[0][step]["lm_loss"], abs=1e-4)
        assert training[step]["grad_norm"] == pytest.approx(alone[0][step]["grad_norm"], rel=1e-3)
    for step, loss in alone[1].items():
        assert validation[step] == pytest.approx(loss, abs=1e-4)
