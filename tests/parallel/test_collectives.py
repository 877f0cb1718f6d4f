"""The region functions against their definition, and each one's backward against its forward.

A linear f and its backward b are conjugate if <f(x), y> = <x, b(y)>, the products summed over the group. Where one
side is replicated over the group, one process's product stands for all.
"""

import pytest
import torch
import torch.distributed as dist

from megatron.parallel.collectives import (
    TensorParallelRegion,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)

SHAPE = (8, 3, 5)


def draw(*what):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(sum(what)))


def call(function, x, gradient):
    x = x.clone().requires_grad_()
    out = function(x, dist.group.WORLD)
    out.backward(gradient)
    return out.detach(), x.grad


def check_regions(rank, size):
    xs = [draw(1, other) for other in range(size)]  # one a process
    common = draw(100)
    piece = slice(rank * SHAPE[0] // size, (rank + 1) * SHAPE[0] // size)
    total = torch.stack(xs).sum(dim=0)

    out, gradient = call(copy_to_tensor_model_parallel_region, common, xs[rank])
    torch.testing.assert_close(out, common, rtol=0, atol=0)
    torch.testing.assert_close(gradient, total)

    out, gradient = call(reduce_from_tensor_model_parallel_region, xs[rank], common)
    torch.testing.assert_close(out, total)
    torch.testing.assert_close(gradient, common, rtol=0, atol=0)

    out, gradient = call(gather_from_sequence_parallel_region, common[piece], xs[rank])
    torch.testing.assert_close(out, common, rtol=0, atol=0)
    torch.testing.assert_close(gradient, total[piece])

    out, gradient = call(reduce_scatter_to_sequence_parallel_region, xs[rank], common[piece])
    torch.testing.assert_close(out, total[piece])
    torch.testing.assert_close(gradient, common, rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 4])
def test_regions_compute_what_they_say_in_both_directions(world, size):
    world(size).run(check_regions, size)


def check_inputs_survive(rank):
    """Neither x nor the gradient handed to backward may change: autograd shows them to others."""
    for function in (
        copy_to_tensor_model_parallel_region,
        reduce_from_tensor_model_parallel_region,
    ):
        x, gradient = draw(rank).requires_grad_(), draw(10 + rank)
        before = x.detach().clone(), gradient.clone()
        function(x, dist.group.WORLD).backward(gradient)
        assert torch.equal(x.detach(), before[0])
        assert torch.equal(gradient, before[1])
    # not contiguous, as a transposed activation is
    transposed = draw(7).transpose(1, 2)
    out = gather_from_sequence_parallel_region(transposed, dist.group.WORLD)
    assert torch.equal(out, torch.cat([transposed] * 2))


def test_inputs_are_left_as_they_were(world):
    world(2).run(check_inputs_survive)


def check_group_of_one(rank):
    (group,) = [dist.new_group([other]) for other in range(2)][rank : rank + 1]
    x = draw(1)
    for sequence_parallel in (False, True):
        region = TensorParallelRegion(group, sequence_parallel)
        assert region.enter(x) is x
        assert region.leave(x) is x
        assert region.outside_grad.is_replicate() and region.inside_grad.is_replicate()


def test_a_group_of_one_does_no_work(world):
    world(2).run(check_group_of_one)


def check_conjugacy(rank, sequence_parallel):
    """<enter(x), y> = <x, enter'(y)> and the same for leave, with the whole sequence or a piece outside."""
    region = TensorParallelRegion(dist.group.WORLD, sequence_parallel)
    length = SHAPE[0] // 2
    outside = draw(3)
    if sequence_parallel:
        outside = outside[rank * length : (rank + 1) * length]
    inside = draw(50, rank)

    def over_processes(value, *, is_replicated):
        dist.all_reduce(value)
        return value / 2 if is_replicated else value

    for function, x, y in ((region.enter, outside, inside), (region.leave, inside, outside)):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        out.backward(y)
        left, right = (out.detach() * y).sum(), (x * leaf.grad).sum()
        # outside without sequence parallelism, all processes hold the same tensor
        is_entering = function == region.enter
        left = over_processes(left, is_replicated=not is_entering and not sequence_parallel)
        right = over_processes(right, is_replicated=is_entering and not sequence_parallel)
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_entering_and_leaving_a_region_are_conjugate(world, sequence_parallel):
    world(2).run(check_conjugacy, sequence_parallel)
