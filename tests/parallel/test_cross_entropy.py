"""The sharded cross entropy against torch's on whole logits."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron.parallel.cross_entropy import vocab_parallel_cross_entropy

SEQ, BATCH = 5, 3


def whole_logits(padded_size, scale):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(SEQ, BATCH, padded_size, generator=generator)


def check_cross_entropy(rank, vocab_size, padded_size, scale, dtype):
    size = dist.get_world_size()
    logits = whole_logits(padded_size, scale).to(dtype)
    labels = torch.randint(0, vocab_size, (SEQ, BATCH), generator=torch.Generator().manual_seed(4))
    labels[0, 0], labels[1, 1] = 0, vocab_size - 1
    weights = torch.rand(SEQ, BATCH, generator=torch.Generator().manual_seed(5))
    weights[2, 2] = 0.0

    reference = logits[..., :vocab_size].float().requires_grad_()
    expected = F.cross_entropy(reference.transpose(1, 2), labels, reduction="none")
    (expected * weights).sum().backward()
    gradient = F.pad(reference.grad, (0, padded_size - vocab_size))

    mine = logits.chunk(size, dim=-1)[rank].contiguous().requires_grad_()
    losses = vocab_parallel_cross_entropy(
        mine * 1, labels, vocab_size=vocab_size, group=dist.group.WORLD
    )
    assert losses.dtype == torch.float32
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 4e-3}
    )
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    (losses * weights).sum().backward()
    assert mine.grad.dtype == dtype
    torch.testing.assert_close(mine.grad.float(), gradient.chunk(size, dim=-1)[rank], **tolerance)


# the last shard of 24 is all padding for a vocabulary of 17 over 4 processes
@pytest.mark.parametrize("vocab_size, padded_size", [(24, 24), (21, 24), (17, 24)])
@pytest.mark.parametrize("size", [1, 4])
def test_loss_and_gradient_equal_torch_on_whole_logits(world, size, vocab_size, padded_size):
    world(size).run(check_cross_entropy, vocab_size, padded_size, 1.0, torch.float32)


def test_large_logits_neither_overflow_nor_lose_the_loss(world):
    world(4).run(check_cross_entropy, 21, 24, 300.0, torch.float32)


def test_bf16_logits_give_an_fp32_loss(world):
    world(4).run(check_cross_entropy, 21, 24, 1.0, torch.bfloat16)


def check_second_backward(rank):
    logits = whole_logits(8, 1.0).requires_grad_()
    labels = torch.zeros(SEQ, BATCH, dtype=torch.int64)
    loss = vocab_parallel_cross_entropy(
        logits * 1, labels, vocab_size=8, group=dist.group.WORLD
    ).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_a_second_backward_is_refused_since_the_logits_are_gone(world):
    world(1).run(check_second_backward)
