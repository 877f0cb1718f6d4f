"""What stays on the host on its way into a wrapped model, and which memory holds its gradients."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from megatron.parallel.data_parallel import keep_on_host, shard_data_parallel
from megatron.parallel.parameter import Constant, ParameterFactory, local_tensor
from tests.grid import grid


class Echo(nn.Module):
    def forward(self, x, **named):
        return x, named


def test_named_tensors_of_the_host_pass_by_hooks_that_would_move_them():
    model, seen = Echo(), []

    def move(module, args, kwargs):
        seen.extend(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {
            name: value.to("meta") if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }

    model.register_forward_pre_hook(move, prepend=True, with_kwargs=True)
    keep_on_host(model)
    starts, labels = torch.arange(3), torch.arange(3, device="meta")
    x, named = model(torch.ones(2), starts=starts, labels=labels, window=4)
    assert seen == ["labels"]
    assert named["starts"] is starts and named["labels"].device.type == "meta"
    assert named["window"] == 4 and torch.equal(x, torch.ones(2))


class Scale(nn.Module):
    def __init__(self, context):
        super().__init__()
        parameters = ParameterFactory(context.tp_mesh, context.device, seed=1)
        self.weight = parameters.create("weight", (4, 3), Replicate(), Constant(1.0))
        self.bias = parameters.create("bias", (3,), Replicate(), Constant(1.0))

    def forward(self, x):
        weight, bias = local_tensor(self.weight, Replicate()), local_tensor(self.bias, Replicate())
        return (x.to(weight.dtype) * weight + bias).sum()


def check_memory(rank, dtype, replicas):
    """Two steps whose gradients are dropped between them, and a third one that adds to the second's."""
    context = grid(dp_replicate=replicas)
    model = Scale(context)
    shard_data_parallel(model, [], context, dtype)
    x = torch.arange(12.0).view(4, 3) * (1 + rank)  # every value is exact in bf16
    total = replicas * (replicas + 1) / 2 * torch.arange(12.0).view(4, 3)
    places, rows = [], torch.full((3,), 4.0 * replicas)
    for factor, drops in ((1, False), (2, True), (4, True), (8, False)):
        if drops:
            model.zero_grad()
        (model(x) * factor).backward()
        gradient = model.weight.grad.to_local()
        places.append(gradient.untyped_storage().data_ptr())
        assert gradient.dtype == torch.float32
        expected = factor if factor < 8 else 4 + 8  # added up
        torch.testing.assert_close(gradient, expected * total, rtol=0, atol=0)
        torch.testing.assert_close(model.bias.grad.to_local(), expected * rows, rtol=0, atol=0)
    assert places[0] == places[1] == places[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_that_are_not_scattered_take_the_memory_of_the_last_step(world, dtype):
    world(2).run(check_memory, dtype, 2)


def kind_of(rank):
    """Give whether a model computes with DTensors, and the axes that its gradients lie on."""
    context, seen = grid(dp_replicate=2), []
    model = Scale(context)
    model.register_forward_pre_hook(
        lambda module, _: seen.append(isinstance(module.weight, DTensor))
    )
    shard_data_parallel(model, [], context, torch.bfloat16)
    model(torch.ones(4, 3)).backward()
    return seen, model.weight.grad.device_mesh.mesh_dim_names


def test_a_model_whose_layers_nobody_shares_computes_with_plain_tensors(world):
    assert world(2).run(kind_of) == [([False], ("dp_replicate", "dp_shard"))] * 2
