"""The process group that lies in shared memory computes what gloo does."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh

from tests.shared_memory import BACKEND, NUM_MESSAGES
from tests.world import World

SIZES = [2, 5]
TOLERANCE = {  # sums are taken in another order
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float64: {"rtol": 1e-14, "atol": 1e-14},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.int64: {"rtol": 0, "atol": 0},
}


def draw(dtype, shape, *what):
    seed = sum(number * 100**place for place, number in enumerate(what))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return drawn.to(dtype) if dtype == torch.int64 else (drawn / 100).to(dtype)


def collect(rank, dtype):
    """Give what each collective leaves on this process."""
    size = dist.get_world_size()
    found = {}
    # columns of a matrix: not contiguous
    found["all_reduce"] = draw(dtype, (7, 3), rank, 1).T
    dist.all_reduce(found["all_reduce"])
    found["broadcast"] = draw(dtype, (5,), rank, 2)
    dist.broadcast(found["broadcast"], src=size - 1)
    found["all_gather_into_tensor"] = torch.empty(3 * size, 2, dtype=dtype)
    dist.all_gather_into_tensor(found["all_gather_into_tensor"], draw(dtype, (3, 2), rank, 3))
    found["reduce_scatter_tensor"] = torch.empty(3, 2, dtype=dtype)
    dist.reduce_scatter_tensor(found["reduce_scatter_tensor"], draw(dtype, (3 * size, 2), rank, 4))
    rows = [torch.empty(3, dtype=dtype) for _ in range(size)]
    dist.all_gather(rows, draw(dtype, (3,), rank, 5))
    found["all_gather"] = torch.stack(rows)
    rows = [torch.zeros(3, dtype=dtype) for _ in range(size)]
    dist.gather(draw(dtype, (3,), rank, 6), rows if rank == 1 else None, dst=1)
    found["gather"] = torch.stack(rows)
    found["scatter"] = torch.empty(3, dtype=dtype)
    rows = [draw(dtype, (3,), number, 8) for number in range(size)]
    dist.scatter(found["scatter"], rows if rank == 1 else None, src=1)
    dist.barrier()
    found["group of some"] = draw(dtype, (4,), rank, 7)
    group = dist.new_group([0, size - 1])
    if rank in (0, size - 1):
        dist.all_reduce(found["group of some"], group=group)
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_collectives_give_what_those_of_gloo_give(world, memory_world, size, dtype):
    expected = world(size).run(collect, dtype)
    found = memory_world(size).run(collect, dtype)
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours) == list(theirs)
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], **TOLERANCE[dtype], msg=name)


def redistribute(rank, size):
    """Give what torch's own layers make of this process's tensors, through functional collectives."""
    mesh = init_device_mesh("cpu", (size,))
    local = draw(torch.float32, (3, 5 * size), rank, 8)
    part = DTensor.from_local(local, mesh, [Partial()])
    return {
        "all_reduce": part.full_tensor(),
        "reduce_scatter": part.redistribute(placements=[Shard(1)]).to_local(),
        "all_gather": DTensor.from_local(local, mesh, [Shard(0)]).full_tensor(),
        "broadcast": dist.tensor.distribute_tensor(local, mesh, [Replicate()]).to_local(),
    }


@pytest.mark.parametrize("size", SIZES)
def test_functional_collectives_give_what_those_of_gloo_give(world, memory_world, size):
    expected = world(size).run(redistribute, size)
    for ours, theirs in zip(memory_world(size).run(redistribute, size), expected, strict=True):
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6, msg=name)


def exchange_objects(rank):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, {"rank": rank, "text": "x" * rank})
    outcome = [f"from {rank}"]
    dist.broadcast_object_list(outcome, src=1)
    return found, outcome


@pytest.mark.parametrize("size", SIZES)
def test_objects_reach_all_processes(memory_world, size):
    everything = [{"rank": rank, "text": "x" * rank} for rank in range(size)]
    for found in memory_world(size).run(exchange_objects):
        assert found == (everything, ["from 1"])


def pass_messages(rank, size):
    """Send each neighbour three rounds of messages at once, and look at those of the last round first."""
    right, left = (rank + 1) % size, (rank - 1) % size
    arrived = []
    for number in range(NUM_MESSAGES):
        rounds = [draw(torch.float32, (2, 3), rank, number, turn) for turn in range(3)]
        outs = [torch.empty(2, 3) for _ in rounds]
        asked = [dist.P2POp(dist.irecv, out, left) for out in outs]
        sent = [dist.P2POp(dist.isend, tensor, right) for tensor in rounds]
        for work in reversed(dist.batch_isend_irecv([*asked, *sent])):
            work.wait()
        arrived.append(torch.stack(outs))
    return torch.stack(arrived)


@pytest.mark.parametrize("size", SIZES)
def test_messages_arrive_in_the_order_in_which_they_were_sent(memory_world, size):
    for rank, arrived in enumerate(memory_world(size).run(pass_messages, size)):
        for number, rounds in enumerate(arrived):
            for turn, tensor in enumerate(rounds):
                sent = draw(torch.float32, (2, 3), (rank - 1) % size, number, turn)
                torch.testing.assert_close(tensor, sent, rtol=0, atol=0)


def fall_out_of_step(rank):
    if rank == 0:
        dist.all_reduce(torch.ones(3))
    else:
        dist.broadcast(torch.ones(3), src=1)


def take_a_maximum(rank):
    dist.all_reduce(torch.ones(3), op=dist.ReduceOp.MAX)


@pytest.mark.parametrize(
    ("function", "message"),
    [(fall_out_of_step, "out of step"), (take_a_maximum, "only sums are taken")],
)
def test_what_is_not_a_collective_of_this_group_raises(function, message):
    world = World(2, BACKEND)
    with pytest.raises(AssertionError, match=message):
        world.run(function)
