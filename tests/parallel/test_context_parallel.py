"""What each of the processes that share a sequence holds, and how they come by the rest."""

import pytest
import torch
import torch.distributed as dist

from megatron.parallel.context_parallel import ContextParallelRegion

SIZES = [1, 2, 3, 8]


def positions_of_all(size, length):
    regions = [ContextParallelRegion(size, rank) for rank in range(size)]
    return [region.positions(length // size) for region in regions]


@pytest.mark.parametrize("size", SIZES)
def test_every_position_is_held_once(size):
    held = torch.cat(positions_of_all(size, 48))
    assert held.dtype == torch.int64
    assert held.sort().values.tolist() == list(range(48))


@pytest.mark.parametrize("size", SIZES)
def test_all_see_as_many_keys(size):
    assert len({int((one + 1).sum()) for one in positions_of_all(size, 48)}) == 1


def test_a_process_holds_a_chunk_from_either_end():
    chunks = [ContextParallelRegion(3, rank).chunks(4) for rank in range(3)]
    assert chunks == [
        (range(2), range(10, 12)),
        (range(2, 4), range(8, 10)),
        (range(4, 6), range(6, 8)),
    ]
    assert ContextParallelRegion().chunks(12) == (range(12),)


def check_gather(rank, size):
    """f(x) = gather(x): its backward sums what all processes say of this one's part."""
    region = ContextParallelRegion(size, rank, dist.group.WORLD)
    draws = torch.Generator().manual_seed(1)
    whole = torch.randn(4 * size, 3, 2, generator=draws)
    gradients = [torch.randn(whole.shape, generator=draws) for _ in range(size)]
    mine = region.positions(4)
    x = whole[mine].requires_grad_()
    out = region.gather(x)
    torch.testing.assert_close(out, whole, rtol=0, atol=0)
    out.backward(gradients[rank])
    torch.testing.assert_close(x.grad, torch.stack(gradients).sum(dim=0)[mine])


def test_gather_puts_the_sequence_in_order_and_sums_gradients(world):
    world(4).run(check_gather, 4)
