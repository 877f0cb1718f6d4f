"""Weights' gradients that products add to fp32 sums, against the same sums in fp64 of what the products were given."""

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megatron.errors import ConfigError
from megatron.options import ParallelConfig
from megatron.parallel.context import ParallelContext, initialize_distributed
from megatron.parallel.data_parallel import _check_sums, _groups, _sum_of
from megatron.parallel.launch import Launch
from megatron.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.parallel.master_weights import MasterWeights
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.start import plan_start
from tests.grid import grid_of
from tests.training.runs import flags_of, parse

BATCH = 8
FUSED, SEPARATE = "--gradient-accumulation-fusion on", "--no-gradient-accumulation-fusion"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
ACTIVATIONS = "--recompute-granularity selective --recompute-modules layernorm mlp_act"
TP2, PP2 = "--tensor-model-parallel-size 2", "--pipeline-model-parallel-size 2"
ZBV, DUAL = (f"{PP2} --pipeline-schedule {name}" for name in ("zbv", "dualpipev"))
SHARDED = "--use-distributed-optimizer"
# processes, options; each with micro-batches of one sample
RUNS = {
    "bf16": (1, "--bf16"),
    "fp16": (1, "--fp16"),
    "full recomputation": (1, f"--bf16 {FULL}"),
    "recomputed activations": (1, f"--bf16 {ACTIVATIONS}"),
    "no biases, own heads": (1, "--bf16 --disable-bias-linear --attention-head-type multihead"),
    "TP2": (2, f"--bf16 {TP2}"),
    "TP2 SP": (2, f"--bf16 {TP2} --sequence-parallel"),
    "DP2": (2, "--bf16"),
    "DP2 sharded": (2, f"--bf16 {SHARDED}"),
    "CP2": (2, "--bf16 --context-parallel-size 2"),
    "PP2": (2, f"--bf16 {PP2}"),
    "PP2 interleaved": (2, f"--bf16 {PP2} --num-layers-per-virtual-pipeline-stage 1"),
    "PP2 ZBV, full recomputation": (2, f"--bf16 {ZBV} {FULL}"),
    "TP2 DP2 sharded": (4, f"--bf16 {TP2} {SHARDED}"),
    "DP4 in two copies": (4, f"--bf16 {SHARDED} --num-distributed-optimizer-instances 2"),
}
IN_V = {"PP2 ZBV": (2, f"--bf16 {ZBV}"), "PP2 DualPipeV": (2, f"--bf16 {DUAL}")}
IS_SPLIT = torch.__version__ >= "2.13"  # from there on they compute gradients of weights later
if not IS_SPLIT:
    RUNS |= IN_V


def build(flags, context=None):
    inputs = open_inputs(parse(flags), dist.get_world_size())
    start = plan_start(inputs, dist.get_world_size())
    return build_run(inputs, start, context or grid_of(inputs.config.parallel))


def layers_of(run):
    """Give the layers whose products add gradients up, by name."""
    return {
        name: layer
        for module in run.parts.pipeline.modules
        for name, layer in module.named_modules()
        if isinstance(layer, ColumnParallelLinear | RowParallelLinear)
    }


def sums_of(run):
    """Give the gradients that are still held for a later backward pass, by `fully_shard` or beside parameters."""
    groups = [group for module in run.parts.pipeline.modules for _, group in _groups(module)]
    sums = [_sum_of(p) for group in groups for p in group.fsdp_params]
    alone = [one for one in run.parts.pipeline._data_parallel if isinstance(one, MasterWeights)]
    sums += [weight.computed.grad for one in alone for weight in one._weights]
    return [one for one in sums if one is not None]


def backward(run, factor=1.0, batch=0):
    run.parts.pipeline.forward_backward(run.loader.batch(batch * BATCH, BATCH), factor)


def gradients(run):
    """Take the gradients of a step away, whole."""
    found = {}
    for name, parameter in run.saver._tensors.parameters.items():
        assert isinstance(parameter.grad, DTensor)
        found[name] = parameter.grad.full_tensor().clone().cpu()
        parameter.grad = None
    return found


class ByHand:
    """The sum of grad^T x over the micro-batches of one layer, in fp64."""

    def __init__(self, layer):
        self.total, self._product = 0.0, layer.product
        layer.product = self.product

    def product(self, x, weight, bias, gradient_sum):
        out = self._product(x, weight, bias, gradient_sum)
        rows = x.detach().flatten(0, -2).double()
        if out.requires_grad:
            # of a recomputed forward pass nothing is differentiated: its hook is never called
            out.register_hook(functools.partial(self._add, rows))
        return out

    def _add(self, rows, grad):
        self.total = self.total + grad.flatten(0, -2).double().t() @ rows

    def sum(self, context):
        """Collective over dp."""
        for axis in ("dp_replicate", "dp_shard"):
            dist.all_reduce(self.total, group=context.mesh.get_group(axis))
        return self.total.cpu()


def errors(rank, flags, context=None):
    """Take a step's backward passes; give how far each weight's gradient is from the sum by hand, relatively."""
    run = build(flags, context)
    context = run.parts.context
    by_hand = {name: ByHand(layer) for name, layer in layers_of(run).items()}
    assert by_hand
    backward(run, factor=2.0**-8)
    assert not sums_of(run)
    whole, found = gradients(run), {}
    for name, hand in by_hand.items():
        expected = hand.sum(context)
        dim = 0 if isinstance(layers_of(run)[name], ColumnParallelLinear) else 1
        local = whole[f"{name}.weight"].chunk(context.tp_size, dim)[context.tp_group.rank()]
        found[name] = ((local - expected).norm() / expected.norm()).item()
    run.close()
    return found


@pytest.mark.parametrize("name", RUNS)
def test_gradients_are_the_sums_in_fp32_of_products_that_nothing_rounds(
    world, corpus, tmp_path, name
):
    size, flags = RUNS[name]
    flags = flags_of(corpus, tmp_path, flags)
    for fused in world(size).run(errors, f"{flags} {FUSED}"):
        assert max(fused.values()) < 1e-6, fused
    for separate in world(size).run(errors, f"{flags} {SEPARATE}"):
        # bf16 has 8 bits of a number, fp16 has 11
        assert min(separate.values()) > (5e-5 if "--fp16" in flags else 5e-4), separate


def check_ways_are_one(rank, flags):
    """Compare the gradients, fused and as autograd hands them out, bit for bit."""
    found = []
    for way in (FUSED, SEPARATE):
        run = build(f"{flags} {way}")
        backward(run)
        found.append(gradients(run))
        run.close()
    for name, fused in found[0].items():
        assert torch.equal(fused, found[1][name]), name


@pytest.mark.parametrize("layout", ["", SHARDED, TP2])
def test_of_one_micro_batch_autograd_keeps_the_gradient(world, corpus, tmp_path, layout):
    micro = BATCH if layout == TP2 else BATCH // 2
    flags = flags_of(corpus, tmp_path, f"--bf16 {layout} --micro-batch-size {micro}")
    world(2).run(check_ways_are_one, flags)


def names_of_sums(rank, flags):
    """Name the layers whose products have a sum to add to."""
    run = build(flags)
    names = {name for name, layer in layers_of(run).items() if layer.gradient_sum is not None}
    run.close()
    return names


def refuse(rank, flags):
    with pytest.raises(ConfigError, match="leave it to auto"):
        build(flags)


@pytest.mark.parametrize("size, flags", [(1, ""), *(IN_V.values() if IS_SPLIT else ())])
def test_what_needs_no_sums_or_cannot_fill_them_once_has_none(world, corpus, tmp_path, size, flags):
    flags = flags_of(corpus, tmp_path, flags)
    assert world(size).run(names_of_sums, flags) == [set()] * size
    world(size).run(refuse, f"{flags} {FUSED}")


def test_key_value_weights_whose_gradients_are_partial_are_left_out(world, corpus, tmp_path):
    flags = flags_of(corpus, tmp_path, f"--bf16 {TP2} {FUSED}")
    for names in world(2).run(names_of_sums, flags):
        assert {name.split(".", 2)[2] for name in names} == {
            "self_attention.query",
            "self_attention.dense",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        }


def check_steps_apart(rank, flags):
    """A step's gradients are the same after another's, after a validation, and after one that overflowed."""
    run = build(flags)
    backward(run)
    first = gradients(run)
    loss = run.parts.pipeline.evaluate(run.loader.batch(0, BATCH))
    backward(run, factor=float("inf"))
    assert not all(gradient.isfinite().all() for gradient in gradients(run).values())
    assert not sums_of(run)
    backward(run, batch=1)
    gradients(run)
    backward(run)
    for name, gradient in gradients(run).items():
        assert torch.equal(gradient, first[name]), name
    assert torch.equal(run.parts.pipeline.evaluate(run.loader.batch(0, BATCH)), loss)
    run.close()


@pytest.mark.parametrize("layout", ["--micro-batch-size 2", SHARDED, PP2])
def test_no_step_leaves_anything_in_the_sums(world, corpus, tmp_path, layout):
    world(2).run(check_steps_apart, flags_of(corpus, tmp_path, f"--bf16 {layout} {FUSED}"))


def test_a_torch_that_keeps_no_sums_is_named_with_the_way_around():
    parameter = SimpleNamespace(sharded_param=None, unsharded_accumulated_grad=None)
    since_2_15 = SimpleNamespace(sharded_param=None, unsharded_grad_dtype=torch.float32)
    _check_sums(SimpleNamespace(reduce_grads=True, fsdp_params=[parameter, since_2_15]))
    del parameter.unsharded_accumulated_grad
    for group in (SimpleNamespace(reduce_grads=True, fsdp_params=[parameter]), SimpleNamespace()):
        with pytest.raises(ConfigError, match="gradient-accumulation-fusion off"):
            _check_sums(group)


@functools.cache
def _context_of_one() -> ParallelContext:
    """Join a world of one on the GPU, once in a process."""
    config = ParallelConfig()
    return ParallelContext.create(config, 1, initialize_distributed(config, Launch()))


def errors_on_a_gpu(flags):
    return errors(0, flags, _context_of_one())


@pytest.fixture(scope="module")
def gpu_process():
    """A process that may use the GPU, while those of other tests are forked."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, (size, _) in RUNS.items() if size == 1])
def test_gradients_on_a_gpu_are_the_sums_in_fp32_too(gpu_process, corpus, tmp_path, name):
    flags = flags_of(corpus, tmp_path, RUNS[name][1])
    fused = gpu_process.submit(errors_on_a_gpu, f"{flags} {FUSED}").result()
    assert max(fused.values()) < 1e-5, fused  # its matrix units cut what they add
    separate = gpu_process.submit(errors_on_a_gpu, f"{flags} {SEPARATE}").result()
    assert min(separate.values()) > (5e-5 if "--fp16" in flags else 5e-4), separate
