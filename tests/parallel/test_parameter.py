"""Parameters say how they are sharded; the factory names and places them."""

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from megatron.parallel.parameter import Constant, Normal, ParameterFactory
from tests.grid import grid


def check_placements(rank):
    mesh = grid(tp=2).tp_mesh
    factory = ParameterFactory(mesh, torch.device("cpu"), seed=1).scope("layers.0").scope("mlp")
    assert factory.prefix == "layers.0.mlp."
    for placement, local_shape in ((Shard(0), (3, 4)), (Shard(1), (6, 2)), (Replicate(), (6, 4))):
        parameter = factory.create("weight", (6, 4), placement, Normal(1.0))
        assert isinstance(parameter, DTensor)
        assert parameter.placements == (placement,)
        assert parameter.dtype == torch.float32
        assert tuple(parameter.shape) == (6, 4)
        assert tuple(parameter.to_local().shape) == local_shape
    ones = factory.create("bias", (6,), Shard(0), Constant(1.0))
    assert ones.to_local().tolist() == [1.0] * 3

    on_meta = ParameterFactory(mesh, torch.device("meta"), seed=1)
    planned = on_meta.create("weight", (1 << 20, 1 << 20), Shard(0), Normal(1.0))
    assert planned.to_local().is_meta
    assert tuple(planned.to_local().shape) == (1 << 19, 1 << 20)


def test_a_parameter_is_a_dtensor_over_tp_that_knows_its_placement(world):
    world(2).run(check_placements)
