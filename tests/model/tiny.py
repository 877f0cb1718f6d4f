"""A tiny GPT for tests, its weights and gradients as whole tensors whatever the layout."""

import hashlib

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from megatron.model.gpt import GPTModel
from megatron.options import ModelConfig
from megatron.parallel.context import ParallelContext
from tests.grid import grid

VOCAB_SIZE = 50
SEQ_LENGTH = 8
BATCH_SIZE = 3
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # fp32; gradients here are of the order 1


def tiny_config(**changes) -> ModelConfig:
    """Odd sizes, no dropout; vocabulary of 50 in 50 rows."""
    defaults = {
        "num_layers": 2,
        "hidden_size": 20,
        "ffn_hidden_size": 28,
        "num_attention_heads": 4,
        "kv_channels": 3,
        "max_position_embeddings": 11,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "vocab_size": VOCAB_SIZE,
        "padded_vocab_size": VOCAB_SIZE,
    }
    return ModelConfig(**(defaults | changes))


def make_context(world_size: int, *, tp: int = 1, sharded: bool = False) -> ParallelContext:
    """Lay out the world's processes: tp of them share a layer, the others a batch."""
    dp_size = world_size // tp
    return grid(dp_shard=dp_size, tp=tp) if sharded else grid(dp_replicate=dp_size, tp=tp)


def make_model(config: ModelConfig, context: ParallelContext, **changes) -> GPTModel:
    """The whole model in one stage unless told otherwise."""
    options = {
        "layers": range(config.num_layers),
        "is_first": True,
        "is_last": True,
        "seed": 1,
        "sequence_parallel": False,
    }
    return GPTModel(config, context, **(options | changes))


def randomize(model: nn.Module) -> None:
    """Give every parameter, biases and norms too, values that follow from its name alone."""
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        (placement,) = parameter.placements
        # rows drawn one by one: those that pad the vocabulary come last and change no other
        whole = torch.stack(
            [torch.randn(parameter.shape[1:], generator=generator) for _ in range(len(parameter))]
        )
        whole = 0.3 * whole + (1.0 if "layernorm.weight" in name else 0.0)
        local = whole
        if isinstance(placement, Shard):
            mesh = parameter.device_mesh
            local = whole.chunk(mesh.size(), dim=placement.dim)[mesh.get_local_rank()]
        with torch.no_grad():
            parameter.to_local().copy_(local)


def whole(tensor: Tensor) -> Tensor:
    """The logical tensor behind shards, partial sums or copies. Collective over its mesh."""
    assert isinstance(tensor, DTensor)
    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim).to_local()


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name without the vocabulary's padding. Collective over tp (and dp if sharded)."""
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        if name in gradients:
            assert not gradients[name][VOCAB_SIZE:].any()
            gradients[name] = gradients[name][:VOCAB_SIZE]
    return gradients


def tiny_batch(num_samples: int = BATCH_SIZE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, labels, loss weights [b, s] and sample numbers [b]."""
    generator = torch.Generator().manual_seed(5)
    shape = (num_samples, SEQ_LENGTH)
    tokens = torch.randint(0, VOCAB_SIZE, shape, generator=generator)
    labels = torch.randint(0, VOCAB_SIZE, shape, generator=generator)
    weights = torch.rand(shape, generator=generator)
    return tokens, labels, weights, torch.arange(40, 40 + num_samples)


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
