"""Saves that threads write: what was in memory when they began, no matter what is done to it since."""

import resource
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from megatron.checkpoint.background import Job, begin_save
from megatron.checkpoint.layout import latest_iteration
from megatron.checkpoint.load import load_checkpoint
from megatron.checkpoint.reader import CheckpointReader
from megatron.checkpoint.save_plan import plan_save
from megatron.checkpoint.snapshot import HostMemory
from megatron.errors import CheckpointError
from tests.checkpoint.test_save_load import VOCAB_ROWS, load_toy, save_toy
from tests.checkpoint.toy import CONFIG, make_context, make_tensors

LAYOUT = (1, 1, 1, 2)


def begin(root, iteration, tensors, memory=None):
    return begin_save(
        root,
        iteration,
        tensors,
        state={"iteration": iteration},
        config=CONFIG,
        plan=plan_save(tensors),
        memory=memory or HostMemory(),
    )


def save_and_overwrite(rank, root, layout):
    """Begin to save, and change every value before a byte can have been written."""
    tensors = make_tensors(make_context(*layout), VOCAB_ROWS)
    gate = threading.Event()
    write = "megatron.checkpoint.background.write_part"
    from megatron.checkpoint.save import write_part

    def gated(*args):
        assert gate.wait(60)
        return write_part(*args)

    with mock.patch(write, gated):
        save = begin(root, 1, tensors)
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.to_local().fill_(777.0)
        assert not save.is_waiting_for_others and not (root / "iter_0000001").exists()
        gate.set()
        assert save.advance() is None
        return str(save.advance())


@pytest.mark.parametrize("layout", [(1, 1, 1, 2), (1, 1, 2, 1), (2, 1, 1, 1)])
def test_values_changed_after_a_save_began_are_not_in_it(world, tmp_path, layout):
    folders = world(2).run(save_and_overwrite, tmp_path, layout)
    assert folders[0] == str(tmp_path / "iter_0000001")
    assert world(2).run(load_toy, tmp_path / "iter_0000001", layout) == [[], []]
    assert latest_iteration(tmp_path) == 1


def fail_in_thread(rank, root, failing_rank):
    """Let one rank write at most 300 bytes to a file; say what came of it and of the next save."""
    tensors = make_tensors(make_context(*LAYOUT), VOCAB_ROWS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    dist.barrier()
    if rank == failing_rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        save = begin(root, 2, tensors)
        save._part._thread.join()
        has_failed = save.has_failed
        with pytest.raises(CheckpointError) as error:
            save.advance()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = sorted(path.name for path in root.iterdir())
    again = begin(root, 3, tensors)
    again.advance()
    again.advance()
    return str(error.value), has_failed, left


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_thread_that_cannot_write_fails_the_save_on_all_ranks_and_the_next_one_works(
    world, tmp_path, failing_rank
):
    world(2).run(save_toy, tmp_path, LAYOUT)
    results = world(2).run(fail_in_thread, tmp_path, failing_rank)
    messages, failed, left = zip(*results, strict=True)
    assert messages[0] == messages[1] and "File too large; make room" in messages[0]
    assert failed == (failing_rank == 0, failing_rank == 1)
    assert left[0] == ["iter_0000001", "latest_checkpointed_iteration.txt"]
    assert latest_iteration(tmp_path) == 3
    assert world(2).run(load_toy, tmp_path / "iter_0000003", LAYOUT) == [[], []]


def test_a_publication_that_fails_keeps_the_tracker(tmp_path):
    first = begin(tmp_path, 1, {"model.a": torch.ones(3)})
    assert (first.advance(), first.advance()) == (None, tmp_path / "iter_0000001")
    second = begin(tmp_path, 2, {"model.a": torch.ones(3)})
    with mock.patch("megatron.checkpoint.layout.replace_durably", side_effect=OSError(28, "full")):
        second.advance()
        with pytest.raises(CheckpointError):
            second.advance()
    assert second.has_failed
    assert latest_iteration(tmp_path) == 1


def test_memory_is_used_again_and_blocks_may_cut_a_tensor(tmp_path):
    memory = HostMemory()
    for scale in (1.0, -2.0):
        tensors = {
            "a": torch.randn(7, 5, dtype=torch.float64) * scale,
            "b": torch.randn(31) * scale,
            "c": torch.randn(3, 4).T * scale,
            "d": torch.tensor(scale),
            "e": (torch.randn(9) * scale).bfloat16(),
            "f": torch.zeros(0, 4),
            "g": torch.tensor([True, False, True]),
        }
        with mock.patch("megatron.checkpoint.snapshot.BLOCK_BYTES", 64):
            save = begin(tmp_path, 1, tensors, memory)
        save.advance()
        folder = save.advance()
        blocks = [block.data_ptr() for block in memory._blocks]
        assert len(blocks) > 5
        loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        load_checkpoint(folder, loaded)
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor), name
    assert CheckpointReader.open(folder).state == {"iteration": 1}
    with mock.patch("megatron.checkpoint.snapshot.BLOCK_BYTES", 64):
        memory.copy([torch.zeros(4)])
    assert len(memory._blocks) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_gives_its_result_or_raises_what_it_raised():
    assert Job(lambda: 3).result() == 3
    missing = Job(lambda: Path("/nowhere").stat())
    with pytest.raises(FileNotFoundError):
        missing.result()
    bug = Job(lambda: [][1])
    with pytest.raises(RuntimeError, match="its traceback says how"):
        bug.result()
    assert missing.has_failed and bug.has_failed
