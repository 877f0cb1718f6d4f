"""The fullest moment of a plan is that of a real run: every storage of a step followed from its making to its end."""

import dataclasses
import weakref
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.torch_version import TorchVersion

from megatron.planning.hardware import Efficiency, Hardware
from megatron.planning.kernels import sums_gradients
from megatron.planning.options import complete
from megatron.planning.passes import _Recorder, held_storages, storage_key
from megatron.planning.plan import Question, make_plan
from megatron.planning.report import to_table
from megatron.training.inputs import open_inputs
from megatron.training.kernel_choice import choose_accumulation
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from megatron.training.step import train_step
from tests.grid import grid_of
from tests.training.runs import flags_of, parse

CPU = Hardware(
    name="CPU",
    device_type="cpu",
    memory_bytes=1e12,
    reserved_bytes=0.0,
    peak_flops={"bfloat16": 1e12, "float32": 1e12},
    memory_bandwidth=1e11,
    node_bandwidth=1e9,
    network_bandwidth=1e9,
    devices_per_node=1,
    power_watts=None,
    efficiency=Efficiency(1.0, 1.0, 1.0, 1.0, 1.0),
)
WIDE = (
    "--hidden-size 256 --seq-length 256 --max-position-embeddings 256 --micro-batch-size 2 --bf16 --eval-iters 0 "
    "--kernels reference --attention-backend blocked"
)


def _most_held(rank, flags):
    """Train two steps and give the most bytes that tensors hold in the second, and the options of the run."""
    inputs = open_inputs(parse(flags), dist.get_world_size())
    run = build_run(inputs, plan_start(inputs, 1), grid_of(inputs.config.parallel))
    size = run.batches.size(0)
    steps = [
        {"batch": run.loader.batch(first, size), "consumed_samples": first} for first in (0, size)
    ]
    train_step(run.parts, global_batch_size=size, **steps[0]).read()
    states = [*run.parts.optimizer.tensors().values(), *(p.detach() for p in run.parts.parameters)]
    states = [getattr(t, "_local_tensor", t) for t in states]
    recorder = _Recorder(alive=sum(held_storages(states).values()))
    for tensor in states:
        storage = tensor.untyped_storage()
        recorder._known[storage_key(tensor)] = weakref.ref(storage)
        recorder._sizes[storage_key(tensor)] = storage.nbytes()
    with recorder:
        train_step(run.parts, global_batch_size=size, **steps[1])
    run.close()
    return recorder.most, inputs.config


@pytest.mark.parametrize(
    "extra",
    [
        "",  # four micro-batches
        "--global-batch-size 2",  # one, whose gradients are summed nowhere
        "--hidden-dropout 0.1 --gradient-accumulation-fusion on",
        "--recompute-granularity full",
        "--logits-chunk-size 128",
    ],
)
def test_a_plan_is_as_full_as_a_run(world, corpus, tmp_path, extra):
    (found,) = world(1).run(_most_held, flags_of(corpus, tmp_path, f"{WIDE} {extra}"))
    most, config = found
    plan = make_plan(complete(config, 1), Question(1, CPU))
    assert plan.fullest.components.total == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("fusion", ["auto", "on", "off"])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "layout", ["--bf16", "--bf16 --pipeline-schedule zbv --pipeline-model-parallel-size 2"]
)
def test_gradients_are_summed_where_a_run_sums_them(corpus, tmp_path, fusion, device_type, layout):
    config = parse(flags_of(corpus, tmp_path, f"{layout} --gradient-accumulation-fusion {fusion}"))
    if "zbv" in layout and fusion == "on":
        return  # refused
    chosen = choose_accumulation(config, torch.device(device_type)).name
    hardware = dataclasses.replace(CPU, device_type=device_type)
    assert sums_gradients(config, hardware, 4) == (chosen == "fused")


def test_a_plan_counts_halves_of_backward_passes_as_its_torch_computes_them(corpus, tmp_path):
    layout = "--bf16 --pipeline-schedule zbv --pipeline-model-parallel-size 2"
    config = open_inputs(parse(flags_of(corpus, tmp_path, layout)), 2).config
    plans, tables = [], []
    for version in ("2.12.1", "2.13.0"):
        with mock.patch("torch.__version__", TorchVersion(version)):
            plans.append(make_plan(complete(config, 2), Question(2, CPU)))
            tables.append(to_table(plans[-1]))
    old, new = plans
    assert old.step.bubble > new.step.bubble
    assert ["torch 2.12.1 computes both halves" in table for table in tables] == [True, False]
