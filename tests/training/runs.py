"""Runs for tests: flags of a tiny model on the corpus, trained in the world a process is in."""

import argparse
import functools
import json
from pathlib import Path

import torch.distributed as dist

from megatron import cli
from megatron.config import Config
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.train import train
from tests.grid import grid_of
from tests.training.corpus import Corpus

NUM_STEPS = 20


def flags_of(corpus: Corpus, save: Path, extra: str = "") -> str:
    """Give the command line of a run with multi-query attention and FIM; extra flags win."""
    return f"""--num-layers 4 --hidden-size 32 --num-attention-heads 4
    --attention-head-type multiquery --hidden-dropout 0 --attention-dropout 0
    --seq-length 32 --max-position-embeddings 32 --micro-batch-size 1 --global-batch-size 8
    --lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine --lr-warmup-iters 2 --weight-decay 0.1
    --train-iters {NUM_STEPS} --eval-interval 10 --eval-iters 2 --log-interval 1
    --make-vocab-size-divisible-by 16 --fim-rate 0.5 --num-workers 0
    --tokenizer-file {corpus.tokenizer} --train-data-path {corpus.train}
    --valid-data-path {corpus.valid} --save {save} --load {save} {extra}"""


@functools.cache  # making it takes as long as two steps of a tiny model
def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    return parser


def parse(flags: str) -> Config:
    """Parse flags as the command line does."""
    return cli.config_from(cli.parse_known(_parser(), flags.split()))


def train_here(rank: int, flags: str) -> str:
    """Build and train on the process group this process is in; give the outcome."""
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    start = plan_start(inputs, world_size)
    run = build_run(inputs, start, grid_of(inputs.config.parallel))
    outcome = train(run)
    run.close()
    return outcome


def read_lines(save: Path) -> list[dict]:
    """Give every line of a run's metrics.jsonl."""
    return [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]


def read_metrics(save: Path, name: str = "valid") -> tuple[dict[int, dict], dict[int, float]]:
    """Give the training lines and the losses of one validation set by step."""
    lines = read_lines(save)
    training = {line["iteration"]: line for line in lines if "grad_norm" in line}
    validation = {
        line["iteration"]: line["lm_loss"] for line in lines if line.get("validation") == name
    }
    return training, validation
