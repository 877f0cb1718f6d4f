"""One changed bit in one copy of a weight or a moment is found, and its process named by all."""

import re
import socket

import pytest
import torch
import torch.distributed as dist

from megatron.errors import TrainingError
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run
from megatron.training.replicas import (
    DifferentCopies,
    Replica,
    checksum,
    describe_copies,
    different_copies,
)
from megatron.training.start import plan_start
from megatron.training.train import train
from tests.grid import grid_of
from tests.training.runs import flags_of, parse

NORM = "layers.1.input_layernorm.weight"
EMBEDDING = "embedding.word_embeddings.weight"
LAYOUTS = {  # world size, flags, the tensor with a changed bit, the rank that has it, whether most others agree
    "DP3": (3, "--global-batch-size 6", "model.layers.1.mlp.dense_h_to_4h.weight", 1, True),
    "TP2 norm": (
        2,
        "--tensor-model-parallel-size 2 --sequence-parallel",
        f"model.{NORM}",
        1,
        False,
    ),
    "TP2 DP2 multi-query": (
        4,
        "--tensor-model-parallel-size 2",
        "model.layers.1.self_attention.key_value.weight",
        3,
        True,
    ),
    "TP2 DP2 moment": (
        4,
        "--tensor-model-parallel-size 2",
        f"optimizer.exp_avg_sq.{NORM}",
        3,
        True,
    ),
    "sharded over DP2, two copies": (
        4,
        "--use-distributed-optimizer --num-distributed-optimizer-instances 2",
        "model.layers.1.mlp.dense_h_to_4h.weight",
        3,
        False,
    ),
    "PP2 ends": (2, "--pipeline-model-parallel-size 2", f"model.{EMBEDDING}", 1, False),
}


class _Flipping:
    """A loader that changes one bit of the mantissa of one value of a tensor when it reads the batch of a step."""

    def __init__(self, loader, tensor, step):
        self._loader, self._tensor, self._step = loader, tensor, step

    def batch(self, consumed, size):
        if consumed // size + 1 == self._step:
            bits = self._tensor.detach().to_local().view(torch.int32).view(-1)
            bits[len(bits) // 2] ^= 1 << 16
        return self._loader.batch(consumed, size)

    def close(self):
        self._loader.close()


def train_with_a_flipped_bit(rank: int, flags: str, name: str | None, flipper: int) -> str:
    """Change a bit in step 3 on one process; give the error, or nothing."""
    world_size = dist.get_world_size()
    inputs = open_inputs(parse(flags), world_size)
    run = build_run(inputs, plan_start(inputs, world_size), grid_of(inputs.config.parallel))
    if rank == flipper and name is not None:
        tensors = run.tensors.all()
        loader = _Flipping(run.loader, tensors[name], 3)
        run = type(run)(**{**vars(run), "loader": loader})
    try:
        train(run)
    except TrainingError as error:
        return str(error)
    finally:
        run.close()
    return ""


def _flags(corpus, save, extra: str) -> str:
    return flags_of(corpus, save, f"--train-iters 4 --eval-iters 0 --log-interval 4 {extra}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_bit_is_named_within_the_interval_and_nothing_is_saved(
    world, corpus, tmp_path, layout
):
    size, extra, name, flipper, has_majority = LAYOUTS[layout]
    flags = _flags(
        corpus,
        tmp_path,
        f"--check-weight-hash-across-dp-replicas-interval 2 --save-interval 3 {extra}",
    )
    messages = world(size).run(train_with_a_flipped_bit, flags, name, flipper)
    assert len(set(messages)) == 1
    assert messages[0].startswith("step 3: copies of the same")  # that of the save, before step 4
    assert f"rank {flipper} (host {socket.gethostname()})" in messages[0] and name in messages[0]
    assert (len(re.findall(r"rank \d+ \(host", messages[0])) == 1) is has_majority
    assert not list(tmp_path.glob("iter_*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_stay_equal_in_a_run_without_faults(world, corpus, tmp_path, layout):
    size, extra, *_ = LAYOUTS[layout]
    extra = f"--check-weight-hash-across-dp-replicas-interval 1 --bf16 {extra}"
    assert world(size).run(train_with_a_flipped_bit, _flags(corpus, tmp_path, extra), None, 0) == (
        [""] * size
    )


@pytest.mark.parametrize("shape", [(), (3,), (1024,), (70, 30), (3, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_bit_counts_and_so_does_its_place(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    width = torch.int32 if dtype == torch.float32 else torch.int16
    sums = {int(checksum(tensor))}
    places = range(0, tensor.numel(), max(1, tensor.numel() // 20))
    for place in places:
        for bit in range(8 * dtype.itemsize):
            changed = tensor.clone()
            mask = torch.tensor(1 << bit, dtype=torch.int64).to(width)
            changed.view(width).view(-1)[place] ^= mask
            sums.add(int(checksum(changed)))
    assert len(sums) == 1 + len(places) * 8 * dtype.itemsize
    if tensor.numel() > 1:
        assert int(checksum(tensor.view(-1).roll(1))) not in sums


def test_only_copies_of_the_same_part_are_compared():
    places = [{"pp": 0, "tp": rank} for rank in range(2)]
    parts = [{"weight": Replica(("pp", "tp"), value)} for value in (1, 2)]
    assert different_copies(parts, places) == []
    copies = [{"weight": Replica(("pp",), value)} for value in (1, 2)]
    assert different_copies(copies, places) == [DifferentCopies("weight", {0: 1, 1: 2})]


def test_processes_are_named_by_majority_and_many_tensors_are_counted():
    found = [DifferentCopies(f"w{n}", {0: 5, 1: 5, 2: 6}) for n in range(5)]
    found.append(DifferentCopies("v", {0: 5, 1: 5, 2: 6, 3: 6}))
    assert describe_copies(found, ["a", "b", "c", "d"]) == [
        "rank 0 (host a), rank 1 (host b), rank 2 (host c), rank 3 (host d) differ, and no majority tells which is "
        "right, in v",
        "rank 2 (host c) differs from the others in w0, w1, w2 and 2 more",
    ]
