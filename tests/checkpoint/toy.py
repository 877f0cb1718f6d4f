"""A toy run in any layout: the placements of the real model, sizes that divide nothing evenly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from megatron.parallel.context import AXES, ParallelContext
from tests.grid import grid

VOCAB_SIZE = 13
CONFIG = {"model": {"vocab_size": VOCAB_SIZE}}
LAYERS = ("layers.0", "layers.1")
EMBEDDING = "embedding.word_embeddings.weight"
# Rows that tp 2 x dp 2 cut as 3+2, 3+2 and as 1+0, 1+0 (a rank without any).
SHAPES = {
    "self_attention.query.weight": ((10, 6), Shard(0)),
    "self_attention.query.bias": ((10,), Shard(0)),
    "self_attention.key_value.weight": ((5, 6), Replicate()),
    "self_attention.dense.weight": ((7, 10), Shard(1)),
    "mlp.bias": ((2,), Shard(0)),
    "input_layernorm.weight": ((1,), Replicate()),
}
Values = Callable[[str, tuple[int, ...]], Tensor]


def make_context(pp: int, dp_replicate: int, dp_shard: int, tp: int) -> ParallelContext:
    return grid(pp=pp, dp_replicate=dp_replicate, dp_shard=dp_shard, tp=tp)


def random_values(name: str, shape: tuple[int, ...]) -> Tensor:
    """A whole tensor that depends on its name only."""
    generator = torch.Generator().manual_seed(sum(ord(c) * (i + 1) for i, c in enumerate(name)))
    return torch.randn(shape, generator=generator)


def zero_values(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape)


def whole_tensors(vocab_rows: int, values: Values = random_values) -> dict[str, Tensor]:
    """All tensors of the run as one process would hold them."""
    shapes = {EMBEDDING: (vocab_rows, 6), "final_layernorm.weight": (6,)}
    for layer in LAYERS:
        shapes |= {f"{layer}.{name}": shape for name, (shape, _) in SHAPES.items()}
    return {
        f"{group}.{name}": values(f"{group}.{name}", shape)
        for group in ("model", "optimizer.exp_avg")
        for name, shape in shapes.items()
    }


class Block(nn.Module):
    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name.replace(".", "__"), parameter)


class Stage(nn.Module):
    """What is wrapped as a whole; these modules never run."""

    def __init__(self, blocks: dict[str, Block]) -> None:
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)


def make_tensors(
    context: ParallelContext, vocab_rows: int, values: Values = random_values
) -> dict[str, Tensor]:
    """This rank's tensors, sharded by `fully_shard` over parameters that tp has already cut.

    The first and the last stage both hold the embedding, as tied weights do.
    """
    num_layers = len(LAYERS) // context.pp_size or 1
    stage_layers = LAYERS[context.pp_rank * num_layers :][:num_layers]
    blocks = {
        layer: Block({name: _parameter(context, *item) for name, item in SHAPES.items()})
        for layer in stage_layers
    }
    ends = {}
    if context.pp_rank in (0, context.pp_size - 1):
        ends[EMBEDDING] = _parameter(context, (vocab_rows, 6), Shard(0))
    if context.pp_rank == context.pp_size - 1:
        ends["final_layernorm.weight"] = _parameter(context, (6,), Replicate())
    end = Block(ends)
    root = Stage({"ends": end, **{n.replace(".", "_"): b for n, b in blocks.items()}})
    for module in (*blocks.values(), root):
        fully_shard(module, mesh=context.dp_mesh, reshard_after_forward=False)
    parameters = {
        f"{prefix}{name.replace('__', '.')}": parameter
        for prefix, block in (("", end), *((f"{n}.", b) for n, b in blocks.items()))
        for name, parameter in block.named_parameters()
    }
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"model.{name}"] = parameter
        tensors[f"optimizer.exp_avg.{name}"] = torch.zeros_like(parameter)
    for name, tensor in tensors.items():
        _fill(tensor, context, values(name, tuple(tensor.shape)))
    return tensors


def _parameter(
    context: ParallelContext, shape: tuple[int, ...], placement: Shard | Replicate
) -> nn.Parameter:
    local = list(shape)
    if isinstance(placement, Shard):
        local[placement.dim] //= context.tp_size
    stride = torch.empty(shape).stride()
    return nn.Parameter(
        DTensor.from_local(
            torch.empty(local), context.tp_mesh, [placement], shape=torch.Size(shape), stride=stride
        )
    )


def _fill(tensor: Tensor, context: ParallelContext, whole: Tensor) -> None:
    """Put this rank's part of a whole tensor in place by the rule itself: tp cuts first, then dp cuts dim 0."""
    *_, tp_placement = tensor.placements
    part = whole
    if tp_placement.is_shard():
        part = part.chunk(context.tp_size, dim=tp_placement.dim)[context.tp_group.rank()]
    dp_size = context.mesh.size(AXES.index("dp_shard"))
    size = -(-part.shape[0] // dp_size)
    part = part[size * context.mesh.get_local_rank("dp_shard") :][:size]
    with torch.no_grad():
        local = tensor.to_local()
        assert local.shape == part.shape, (local.shape, part.shape)
        local.copy_(part)
