"""The layouts, heads and settings of the proof that every layout trains the same model, and what a cell observes.

A cell is a run of a few steps through the parts that `build_run` makes, on real code: its losses, gradient norms,
whole gradients of the first step and whole weights after the last. One process computes what is expected, without
accumulation and without recomputation, so that these are compared too and not only their layouts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from megatron.optimizer.adamw import AdamW
from megatron.optimizer.loss_scale import LossScale
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.run import Run
from megatron.training.start import plan_start
from megatron.training.step import train_step
from tests.grid import grid_of
from tests.training.corpus import VOCAB_SIZE, Corpus
from tests.training.runs import parse
from tests.world import Worlds

GLOBAL_BATCH = 12  # 1, 2, 3 and 4 data parallel processes divide it

TP2, TP4 = "--tensor-model-parallel-size 2", "--tensor-model-parallel-size 4"
PP2, PP4 = "--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 4"
CP2, CP4 = "--context-parallel-size 2", "--context-parallel-size 4"
SP, SHARDED = "--sequence-parallel", "--use-distributed-optimizer"
CHUNKS = "--num-layers-per-virtual-pipeline-stage 1"
COPIES = f"{SHARDED} --num-distributed-optimizer-instances 2"

# processes, then options by name; the data parallel size is what is left
LAYOUTS: dict[int, dict[str, str]] = {
    1: {"alone": ""},
    2: {
        "TP2": TP2,
        "TP2 SP": f"{TP2} {SP}",
        "PP2": PP2,
        "PP2 interleaved": f"{PP2} {CHUNKS}",
        "PP2 ZBV": f"{PP2} --pipeline-schedule zbv",
        "PP2 DualPipeV": f"{PP2} --pipeline-schedule dualpipev",
        "PP2 uneven": f"{PP2} --decoder-first-pipeline-num-layers 1",
        "DP2": "",
        "DP2 sharded": SHARDED,
        "CP2": CP2,
    },
    3: {"DP3": "", "DP3 sharded": SHARDED},
    4: {
        "TP4": TP4,
        "TP4 SP": f"{TP4} {SP}",
        "PP4": PP4,
        "DP4 sharded": SHARDED,
        "DP4 in two copies": COPIES,
        "TP2 PP2": f"{TP2} {PP2}",
        "TP2 SP PP2 interleaved": f"{TP2} {SP} {PP2} {CHUNKS}",
        "TP2 DP2": TP2,
        "TP2 SP DP2 sharded": f"{TP2} {SP} {SHARDED}",
        "PP2 DP2": PP2,
        "TP2 SP PP2 ZBV": f"{TP2} {SP} {PP2} --pipeline-schedule zbv",
        "PP2 DualPipeV DP2 sharded": f"{PP2} {SHARDED} --pipeline-schedule dualpipev",
        "PP2 interleaved DP2 sharded": f"{PP2} {CHUNKS} {SHARDED}",
        "CP4": CP4,
        "CP2 TP2 SP": f"{CP2} {TP2} {SP}",
        "CP2 PP2 ZBV": f"{CP2} {PP2} --pipeline-schedule zbv",
        "CP2 DP2 sharded": f"{CP2} {SHARDED}",
    },
    8: {
        "TP2 PP2 DP2": f"{TP2} {PP2}",
        "TP2 SP PP2 interleaved DP2 sharded": f"{TP2} {SP} {PP2} {CHUNKS} {SHARDED}",
        "TP2 SP PP2 ZBV DP2 sharded": f"{TP2} {SP} {PP2} {SHARDED} --pipeline-schedule zbv",
        "TP4 SP PP2": f"{TP4} {SP} {PP2}",
        "TP2 SP DP4 in two copies": f"{TP2} {SP} {COPIES}",
        "CP2 TP2 SP PP2 interleaved": f"{CP2} {TP2} {SP} {PP2} {CHUNKS}",
    },
}
HEADS = {
    "multihead": "--attention-head-type multihead",
    "grouped": "--num-query-groups 2",
    "multiquery": "--attention-head-type multiquery",
}
# What a layout runs, and what one process runs to be compared with.
SETTINGS = {
    "FIM": ("--fim-rate 0.5 --micro-batch-size {micro}", "--fim-rate 0.5 --micro-batch-size 12"),
    "documents": (
        "--reset-position-ids --reset-attention-mask --micro-batch-size {micro}",
        "--reset-position-ids --reset-attention-mask --micro-batch-size 12",
    ),
    "recompute": (
        "--hidden-dropout 0.1 --attention-dropout 0.1 --micro-batch-size {micro} "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--hidden-dropout 0.1 --attention-dropout 0.1 --micro-batch-size 12",
    ),
    "accumulation": (
        "--eod-mask-loss --untie-embeddings-and-output-weights --micro-batch-size {smaller}",
        "--eod-mask-loss --untie-embeddings-and-output-weights --micro-batch-size 12",
    ),
}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # fp32, up to ten steps


@dataclass(frozen=True)
class Trace:
    """What a process saw of a run: whole tensors of the weights that its stages hold, by name."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """What the proof may be repeated with."""

    seed: int
    width: int  # of the residual stream, a multiple of 4
    num_steps: int

    @classmethod
    def asked(cls, config: pytest.Config, num_steps: int) -> Scale:
        """Take what the command line says (tests/conftest.py)."""
        return cls(config.getoption("--matrix-seed"), config.getoption("--matrix-width"), num_steps)


@dataclass(frozen=True)
class Cell:
    """One kind of heads in one setting, under one layout."""

    size: int  # processes
    layout: str
    heads: str
    setting: str

    def __str__(self) -> str:
        return f"{self.layout}-{self.heads}-{self.setting}"

    @property
    def num_layers(self) -> int:
        """Give enough for four stages, or for two of unequal length, where there are."""
        layout = LAYOUTS[self.size][self.layout]
        is_long = any(flag in layout for flag in (PP4, CHUNKS, "--pipeline-schedule", "-first-"))
        return 4 if is_long else 2

    @property
    def is_small(self) -> bool:
        """Whether it takes a second or two: the time goes by processes and stages."""
        return self.size * self.num_layers <= 8

    @property
    def model(self) -> str:
        """Name what cells that are compared with the same run of one process have in common."""
        return f"{self.num_layers} {self.heads} {self.setting}"

    def command(self, corpus: Corpus, scale: Scale) -> str:
        """Give the options of this layout."""
        layout = LAYOUTS[self.size][self.layout]
        micro, smaller = micro_batch_sizes(self.size, layout)
        setting = SETTINGS[self.setting][0].format(micro=micro, smaller=smaller)
        return f"{self._model(corpus, scale)} {setting} {layout}"

    def command_alone(self, corpus: Corpus, scale: Scale) -> str:
        """Give the options of the one process that it is compared with."""
        return f"{self._model(corpus, scale)} {SETTINGS[self.setting][1]}"

    def _model(self, corpus: Corpus, scale: Scale) -> str:
        return f"""--num-layers {self.num_layers} --hidden-size {scale.width} --num-attention-heads 4
            {HEADS[self.heads]} --hidden-dropout 0 --attention-dropout 0 --init-method-std 0.1
            --seq-length 24 --max-position-embeddings 24 --global-batch-size {GLOBAL_BATCH}
            --lr 1e-2 --weight-decay 0.1 --clip-grad 0.7 --adam-eps 1e-3
            --train-iters {scale.num_steps} --eval-iters 0 --num-workers 0 --seed {scale.seed}
            --make-vocab-size-divisible-by 16 --tokenizer-file {corpus.tokenizer}
            --train-data-path {corpus.short}"""


def cells(*, one_in: int = 1) -> list[Cell]:
    """Give the whole product; or each one_in-th kind of heads in a setting, starting elsewhere for each layout."""
    layouts = [(size, name) for size, group in LAYOUTS.items() for name in group]
    return [
        Cell(size, name, heads, setting)
        for row, (size, name) in enumerate(layouts)
        for number, (heads, setting) in enumerate(itertools.product(HEADS, SETTINGS))
        if (row + number) % one_in == 0
    ]


def micro_batch_sizes(size: int, layout: str) -> tuple[int, int]:
    """Give the largest that leaves a pipeline a micro-batch for each of its stages, and one for more of them.

    That is a third where nothing is a pipeline, and the next smaller one where all have several anyway. Interleaved
    schedules want a multiple of the processes.
    """
    ways, ranks, shares = (_number_after(flag[:-1], layout) for flag in (TP2, PP2, CP2))
    stages = 2 * ranks if "--pipeline-schedule" in layout else ranks
    num_samples = GLOBAL_BATCH // (size // (ways * ranks * shares))
    largest = num_samples // stages
    if stages == 1:
        return largest, max(largest // 3, 1)
    smaller = [number for number in range(1, largest) if num_samples % (number * ranks) == 0]
    return largest, max(smaller, default=1)


def _number_after(flag: str, options: str) -> int:
    found = re.search(rf"{flag}(\d+)", options)
    return 1 if found is None else int(found[1])


class _Watched:
    """The optimizer, with a look at the gradients it gets at first."""

    def __init__(self, optimizer: AdamW, parameters: dict[str, Any]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self.gradients: dict[str, Tensor] = {}

    def step(self, *, gradient_factor: Tensor, **rest: Any) -> None:
        if not self.gradients:
            gradients = {name: p.grad for name, p in self._parameters.items()}
            self.gradients = {
                name: gradient * gradient_factor for name, gradient in whole(gradients).items()
            }
        self._optimizer.step(gradient_factor=gradient_factor, **rest)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give logical tensors, without the rows that pad the vocabulary. Collective over tp and dp."""
    found = {}
    for name, tensor in tensors.items():
        assert isinstance(tensor, DTensor)
        found[name] = tensor.detach().full_tensor().clone()
        if "word_embeddings" in name or "output_layer" in name:
            found[name] = found[name][:VOCAB_SIZE]
    return found


def observe(flags: str) -> Trace:
    """Train by these options in the world this process is in. Collective over it."""
    inputs = open_inputs(parse(flags), dist.get_world_size())
    start = plan_start(inputs, dist.get_world_size())
    run: Run = build_run(inputs, start, grid_of(inputs.config.parallel))
    parameters = run.saver._tensors.parameters
    watched = _Watched(run.parts.optimizer, parameters)
    parts = dataclasses.replace(run.parts, optimizer=watched, loss_scale=_loss_scale())
    results = []
    for step in range(inputs.config.training.train_iters or 0):
        consumed = step * GLOBAL_BATCH
        results.append(
            train_step(
                parts,
                run.loader.batch(consumed, GLOBAL_BATCH),
                consumed_samples=consumed,
                global_batch_size=GLOBAL_BATCH,
            ).read()
        )
    run.close()
    return Trace(
        [result.loss for result in results],
        [result.gradient_norm for result in results],
        watched.gradients,
        whole(parameters),
    )


def _loss_scale() -> LossScale:
    """Give one that stays, for what multiplies gradients in fp16 must come out of them again."""
    return LossScale(1024.0, False, minimum=1.0, window=1000, hysteresis=1, remaining_hysteresis=1)


def expect(rank: int, flags: str, file: Path) -> None:
    """Write what one process sees."""
    torch.save(dataclasses.asdict(observe(flags)), file)


@dataclass(frozen=True)
class Expected:
    """The files of what one process sees, each made when it is first asked for."""

    world: Worlds
    corpus: Corpus
    scale: Scale
    folder: Path

    def file(self, cell: Cell) -> Path:
        """Give that of a cell, which it shares with others of the same model."""
        path = self.folder / cell.model
        if not path.exists():
            self.world(1).run(expect, cell.command_alone(self.corpus, self.scale), path)
        return path


@functools.cache  # reading one takes as long as a step
def _read(file: Path) -> Trace:
    return Trace(**torch.load(file))


def compare(rank: int, flags: str, file: Path) -> None:
    """Raise AssertionError unless this layout sees what one process saw. Collective over the world."""
    found = difference(flags, file)
    assert found is None, found


def difference(flags: str, file: Path) -> str | None:
    """Say where this layout first sees something else than one process saw. Collective over the world."""
    found, expected = observe(flags), _read(file)
    for kind in ("losses", "norms"):
        ours, theirs = torch.tensor(getattr(found, kind)), torch.tensor(getattr(expected, kind))
        if not torch.allclose(ours, theirs, **TOLERANCE):
            return f"{kind} are {ours.tolist()}, of one process {theirs.tolist()}"
    for kind in ("gradients", "weights"):
        for name, tensor in getattr(found, kind).items():
            other = getattr(expected, kind)[name]
            distance = (tensor - other).norm().item()
            # as a whole, for elements of a gradient may be smaller than any error that is seen beside a weight
            if distance > TOLERANCE["rtol"] * other.norm().item() + 1e-6:
                return f"{kind}: {name} is {distance:.3g} from that of one process, {other.norm():.3g} long"
    return None
