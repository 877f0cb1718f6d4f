"""Output layer and loss in chunks against torch on whole logits, and against the loss of all logits at once."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.kernels import cuda_library
from megatron.kernels.cross_entropy import FUSED, REFERENCE
from megatron.parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.parallel.linear_cross_entropy import chunked_linear_cross_entropy

SEQ, BATCH, HIDDEN = 7, 3, 10


def draw(vocab_size, padded_size, dtype, *, shape=(SEQ, BATCH, HIDDEN)):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(padded_size, shape[-1], generator=generator).mul(0.5).to(dtype)
    labels = torch.randint(0, vocab_size, shape[:2], generator=generator)
    labels[0, 0], labels[1, 1] = 0, vocab_size - 1
    scale = torch.rand(shape[:2], generator=generator)
    scale[2, 2] = 0.0
    return hidden, weight, labels, scale


def by_torch(hidden, weight, labels, scale, vocab_size):
    """Losses and gradients in fp64."""
    hidden, whole = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = F.linear(hidden, whole[:vocab_size])
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    (losses * scale.double()).sum().backward()
    return losses.detach(), hidden.grad, whole.grad


def check(rank, vocab_size, padded_size, chunk_size, dtype):
    size, group = dist.get_world_size(), dist.group.WORLD
    hidden, weight, labels, scale = draw(vocab_size, padded_size, dtype)
    expected = by_torch(hidden, weight, labels, scale, vocab_size)
    mine = hidden.clone().requires_grad_()
    shard = weight.chunk(size)[rank].clone().requires_grad_()
    losses = chunked_linear_cross_entropy(
        mine, shard, labels, vocab_size=vocab_size, chunk_size=chunk_size, group=group
    )
    assert losses.dtype == torch.float32
    (losses * scale).sum().backward()
    assert mine.grad.dtype == shard.grad.dtype == dtype
    whole = mine.grad.float()
    dist.all_reduce(whole)  # what leaving the region does
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    )
    torch.testing.assert_close(losses.double(), expected[0], **tolerance)
    torch.testing.assert_close(whole.double(), expected[1], **tolerance)
    torch.testing.assert_close(
        shard.grad.double(), expected[2].chunk(size)[rank].contiguous(), **tolerance
    )


# 21 tokens in chunks of one, with a rest, and all at once; the last shard of 24 is padding alone over 4 processes
@pytest.mark.parametrize("chunk_size", [1, 8, 100])
@pytest.mark.parametrize("vocab_size, padded_size", [(24, 24), (17, 24)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_loss_and_gradients_equal_torch_on_whole_logits(
    world, size, vocab_size, padded_size, chunk_size
):
    world(size).run(check, vocab_size, padded_size, chunk_size, torch.float32)


def test_bf16_products_give_an_fp32_loss(world):
    world(2).run(check, 21, 24, 8, torch.bfloat16)


def check_against_all_at_once(rank):
    group = dist.group.WORLD
    hidden, weight, labels, scale = draw(20, 24, torch.float32)
    results = []
    for is_chunked in (False, True):
        mine = hidden.clone().requires_grad_()
        shard = weight.chunk(2)[rank].clone().requires_grad_()
        if is_chunked:
            losses = chunked_linear_cross_entropy(
                mine, shard, labels, vocab_size=20, chunk_size=5, group=group
            )
        else:
            losses = vocab_parallel_cross_entropy(
                F.linear(mine, shard), labels, vocab_size=20, group=group
            )
        (losses * scale).sum().backward()
        results.append((losses.detach(), mine.grad, shard.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_chunks_equal_all_logits_at_once(world):
    world(2).run(check_against_all_at_once)


def check_storage(rank):
    """Give the most elements of one tensor that forward and backward allocate."""
    hidden, weight, labels, _ = draw(64, 64, torch.float32, shape=(16, 16, 4))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.untyped_storage().nbytes() // one.element_size())
            return out

    hidden.requires_grad_(), weight.requires_grad_()
    with Watch():
        chunked_linear_cross_entropy(
            hidden, weight, labels, vocab_size=64, chunk_size=32, group=dist.group.WORLD
        ).sum().backward()
    return largest


def test_no_tensor_of_all_logits_exists(world):
    assert world(1).run(check_storage) == [32 * 64]


def check_on_gpu(rank, is_fused, dtype):
    shape, vocab_size, padded_size = (65, 2, 96), 1000, 1024
    hidden, weight, labels, scale = (
        x.cuda() for x in draw(vocab_size, padded_size, dtype, shape=shape)
    )
    expected = by_torch(hidden, weight, labels, scale, vocab_size)
    runs = []
    for _ in range(2):
        mine, shard = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        losses = chunked_linear_cross_entropy(
            mine,
            shard,
            labels,
            vocab_size=vocab_size,
            chunk_size=32,
            group=dist.group.WORLD,
            kernels=FUSED if is_fused else REFERENCE,
        )
        (losses * scale).sum().backward()
        runs.append((losses.detach(), mine.grad, shard.grad))
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}
    )
    for one, again, other in zip(*runs, expected, strict=True):
        assert torch.equal(one, again)
        torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_fused", [False, True])
def test_loss_and_gradients_equal_torch_on_a_gpu(world, is_fused, dtype):
    if is_fused and (obstacle := cuda_library.obstacle()) is not None:
        pytest.skip(obstacle)
    world(1).run(check_on_gpu, is_fused, dtype)
