"""A number that is not finite, wherever it arises, stops at the gradients: no process's weights or moments change."""

import dataclasses
import math

import pytest
import torch
import torch.distributed as dist

from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.run import Run
from megatron.training.start import plan_start
from megatron.training.step import train_step
from tests.grid import grid_of
from tests.training.runs import flags_of, parse

BATCH = 8  # of flags_of
LAYOUTS = {
    "alone": (1, ""),
    "TP2": (2, "--tensor-model-parallel-size 2"),
    "TP2 sequence parallel, bf16": (
        2,
        "--tensor-model-parallel-size 2 --sequence-parallel --bf16",
    ),
    "CP2": (2, "--context-parallel-size 2"),
    "PP2": (2, "--pipeline-model-parallel-size 2"),
    "PP2 ZBV": (2, "--pipeline-model-parallel-size 2 --pipeline-schedule zbv"),
    "TP2 DP2 distributed optimizer": (
        4,
        "--tensor-model-parallel-size 2 --use-distributed-optimizer",
    ),
}


class Poisoned:
    """A pipeline after whose backward pass one value of one process's gradients is infinite."""

    def __init__(self, pipeline, parameter):
        self._pipeline, self._parameter = pipeline, parameter

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def forward_backward(self, batch, scale):
        loss = self._pipeline.forward_backward(batch, scale)
        self._parameter.grad.to_local().view(-1)[-1] = math.inf
        return loss


def poison_gradient_of_weight(module, value: float, *, micro_batch: int) -> None:
    """Let one micro-batch of this process make a gradient of a layer's weight, and of nothing else, that holds value."""
    calls, inner = [0], module.product

    def product(x, weight, bias, gradient_sum):
        calls[0] += 1
        if calls[0] == micro_batch:
            weight = weight.view_as(weight)
            weight.register_hook(lambda grad: torch.full_like(grad, value))
        return inner(x, weight, bias, gradient_sum)

    module.product = product


def _step(run: Run, number: int):
    return train_step(
        run.parts,
        run.loader.batch(BATCH * number, BATCH),
        consumed_samples=BATCH * number,
        global_batch_size=BATCH,
    ).read()


def _bits(run: Run) -> dict[str, torch.Tensor]:
    tensors = run.tensors.all()
    return {
        name: x.detach().to_local().reshape(-1).view(torch.uint8).clone()
        for name, x in tensors.items()
    }


def lose_a_step(rank: int, flags: str, where: str) -> tuple[bool, bool, str]:
    """Take a step, one that is poisoned on one process alone, and one more."""
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    run = build_run(inputs, plan_start(inputs, world_size), grid_of(inputs.config.parallel))
    has_end_first = "zbv" in flags and where == "its loss"  # a V ends where it begins
    is_poisoner = rank == (0 if has_end_first else world_size - 1)
    assert not _step(run, 0).is_skipped
    before = _bits(run)
    poisoned = run
    if is_poisoner and where == "its loss":
        loader = _PoisonedLoader(run.loader)
        poisoned = dataclasses.replace(run, loader=loader)
    elif is_poisoner and where == "a gradient that was reduced":
        held = run.tensors.parameters
        norm = next(p for name, p in held.items() if name.endswith("input_layernorm.weight"))
        parts = dataclasses.replace(run.parts, pipeline=Poisoned(run.parts.pipeline, norm))
        poisoned = dataclasses.replace(run, parts=parts)
    elif is_poisoner:
        held = run.parts.pipeline._modules[0].named_modules()
        keys_values = next(x for name, x in held if name.endswith("self_attention.key_value"))
        poison_gradient_of_weight(keys_values, math.nan, micro_batch=2)
    result = _step(poisoned, 1)
    after = _bits(run)
    assert run.parts.optimizer.num_steps == 1
    for name, bits in before.items():
        assert torch.equal(bits, after[name]), name
    assert not _step(run, 2).is_skipped
    assert run.parts.optimizer.num_steps == 2
    run.close()
    return result.is_skipped, result.is_lost, repr((result.loss, result.gradient_norm))


class _PoisonedLoader:
    def __init__(self, loader):
        self._loader = loader

    def batch(self, consumed, size):
        batch = self._loader.batch(consumed, size)
        mask = batch.loss_mask.clone()
        mask[-1, -1] = math.inf
        return dataclasses.replace(batch, loss_mask=mask)


@pytest.mark.parametrize(
    "where", ["its loss", "a gradient that was reduced", "the part of one micro-batch"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_on_one_process_changes_no_weight_of_any(
    world, corpus, tmp_path, layout, where
):
    size, extra = LAYOUTS[layout]
    flags = flags_of(corpus, tmp_path, f"--eval-iters 0 {extra}")
    results = world(size).run(lose_a_step, flags, where)
    assert [(skipped, lost) for skipped, lost, _ in results] == [(True, True)] * size
    assert len({numbers for _, _, numbers in results}) == 1, "the processes read different numbers"
