"""The weights of a model that shares its gradients with no data parallel process: what it sees, and what adds up."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Partial, Replicate

from megatron.parallel.collectives import TensorParallelRegion
from megatron.parallel.data_parallel import shard_data_parallel
from megatron.parallel.layers import VocabParallelEmbedding
from megatron.parallel.master_weights import MasterWeights
from megatron.parallel.parameter import Constant, Normal, ParameterFactory, local_tensor
from tests.grid import grid

THIRD = 1 / 3  # no value of bf16
X = torch.arange(12.0).view(4, 3)  # every value is one


class Scale(nn.Module):
    """x * weight + bias, the weight in two places."""

    def __init__(self, context):
        super().__init__()
        parameters = ParameterFactory(context.tp_mesh, context.device, seed=1)
        self.weight = parameters.create("weight", (4, 3), Replicate(), Constant(THIRD))
        self.bias = parameters.create("bias", (3,), Replicate(), Constant(1.0))
        self.again = nn.Module()
        self.again.weight = self.weight
        self.placement = Partial() if context.tp_size > 1 else Replicate()
        self.seen = []

    def forward(self, x):
        weight = local_tensor(self.weight, self.placement)
        again = local_tensor(self.again.weight, self.placement)
        self.seen.append((weight.dtype, weight[0, 0].item(), again.data_ptr() == weight.data_ptr()))
        half = x.to(weight.dtype) / 2
        return (half * weight + half * again + local_tensor(self.bias, Replicate())).sum()


def make(dtype, **sizes):
    context = grid(**sizes)
    model = Scale(context)
    weights = shard_data_parallel(model, [], context, dtype)
    assert isinstance(weights, MasterWeights)
    return model, weights


def take_step(model, weights, micro_batches):
    """Give the step's gradients of weight and bias, and drop them."""
    for number, x in enumerate(micro_batches, start=1):
        weights.set_gradient_sync(is_last_micro_batch=number == len(micro_batches))
        model(x).backward()
    weights.finish()
    gradients = [parameter.grad.to_local() for parameter in (model.weight, model.bias)]
    model.zero_grad()
    return gradients


def check_passes(rank, dtype):
    """A validation, a step, a change of the weights, another step."""
    model, weights = make(dtype)
    parameters, master = dict(model.named_parameters()), model.weight.to_local()
    with torch.no_grad():
        model(X)
    first, _ = take_step(model, weights, [X])
    assert dict(model.named_parameters()) == parameters and model.again.weight is model.weight
    assert master[0, 0].item() == torch.tensor(THIRD).item()
    place = first.untyped_storage().data_ptr()
    assert first.dtype == torch.float32 and torch.equal(first, X)
    with torch.no_grad():
        master.fill_(0.7)
    second, bias = take_step(model, weights, [X, 2 * X, 4 * X])
    assert torch.equal(second, 7 * X) and torch.equal(bias, torch.full((3,), 12.0))
    values = [torch.tensor(value).to(dtype).item() for value in (THIRD, THIRD, 0.7, 0.7, 0.7)]
    assert model.seen == [(dtype, value, True) for value in values]
    if dtype != torch.float32:
        assert second.untyped_storage().data_ptr() == place  # kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_see_the_weights_of_now_and_leave_gradients_in_fp32(world, dtype):
    world(1).run(check_passes, dtype)


def check_sums(rank):
    """What bf16 cannot add to 256 arrives."""
    model, weights = make(torch.bfloat16)
    total, _ = take_step(model, weights, [torch.full((4, 3), x) for x in (256.0, 1.0, 0.5)])
    assert torch.equal(total, torch.full((4, 3), 257.5))


def test_gradients_of_micro_batches_are_added_in_fp32(world):
    world(1).run(check_sums)


def check_partial(rank):
    model, weights = make(torch.bfloat16, tp=2)
    for _ in range(2):
        total, bias = take_step(model, weights, [(rank + 1) * X, 256 * X])
        assert torch.equal(total, (1 + 2 + 2 * 256) * X)
        assert torch.equal(bias, torch.full((3,), 8.0))  # each process's own is whole


def test_partial_gradients_are_summed_over_tensor_parallel_processes_once(world):
    world(2).run(check_partial)


def check_left(rank, tp):
    model, weights = make(torch.bfloat16, tp=tp)
    model(X).backward()
    weights.finish()
    if tp == 1:
        total, _ = take_step(model, weights, [2 * X])
        assert torch.equal(total, 3 * X)
        return
    with pytest.raises(AssertionError):
        model(X)


@pytest.mark.parametrize("tp", [1, 2])
def test_gradients_of_another_step_are_added_to_and_never_summed_twice(world, tp):
    world(tp).run(check_left, tp)


def check_memory(rank):
    """In fp32 a model computes with the parameters themselves."""
    model, weights = make(torch.float32)
    place = model.weight.to_local().data_ptr()
    model(X)
    assert model.weight.data_ptr() == place
    weights.finish()


def test_weights_in_fp32_are_not_copied(world):
    world(1).run(check_memory)


class Table(nn.Module):
    """An embedding whose weight is also used as a whole, or not."""

    def __init__(self, context, is_tied):
        super().__init__()
        parameters = ParameterFactory(context.tp_mesh, context.device, seed=1)
        region = TensorParallelRegion(context.tp_group, sequence_parallel=False)
        self.embedding = VocabParallelEmbedding(6, 2, parameters, region, initial=Normal(1.0))
        self.is_tied = is_tied

    def forward(self, ids):
        out = self.embedding(ids).float().sum()
        return out + 2 * self.embedding.local_weight().float().sum() if self.is_tied else out


def check_rows(rank, tp, is_tied):
    """Two steps of three micro-batches in which a token comes so often that bf16 could not count it."""
    context = grid(tp=tp)
    model = Table(context, is_tied)
    weights = shard_data_parallel(model, [], context, torch.bfloat16)
    often = torch.tensor([[1, 1, 5, 4] * 200])
    expected = torch.tensor([1.0, 802.0, 0.0, 0.0, 400.0, 401.0]) + (6 if is_tied else 0)
    for _ in range(2):
        for ids in (often, torch.tensor([[1, 0, 1, 5]]), often):
            model(ids).backward()
        weights.finish()
        gradient = model.embedding.weight.grad.full_tensor()
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, expected.unsqueeze(1).expand(6, 2))
        model.zero_grad()


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("is_tied", [False, True])
def test_rows_of_an_embedding_are_added_to_its_sum_in_fp32(world, tp, is_tied):
    world(tp).run(check_rows, tp, is_tied)
