"""Batches by arithmetic: the samples of a step do not depend on who reads them, nor on how."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.fim import FillInTheMiddle
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.loader import BatchLoader, DocumentResets
from megatron.data.sample_order import sample_numbers
from megatron.errors import DataError
from tests.data.numbers_dataset import DAMAGED, DEADLY, LargeNumbers, Numbers
from tests.process_end import have_ended, is_running

SEQ_LENGTH = 64


@pytest.fixture(scope="module")
def blend(tokenizer, source_texts, tmp_path_factory):
    """Two sources of real code with fill in the middle: all that a worker must carry over."""
    folder = tmp_path_factory.mktemp("loader")
    fim = FillInTheMiddle(tokenizer, rate=0.5)
    datasets = []
    for part in range(2):
        with IndexedDatasetBuilder(folder / str(part), np.uint16) as builder:
            for text in source_texts[part::2]:
                builder.add_document([*tokenizer.tokenize(text[:20_000]), tokenizer.eod])
            builder.finalize()
        datasets.append(
            GPTDataset(
                IndexedDataset(folder / str(part)),
                range(len(source_texts[part::2])),
                seq_length=SEQ_LENGTH,
                seed=1,
                name=f"train/{part}",
                fim=fim,
            )
        )
    return BlendedDataset(datasets, [0.7, 0.3], "train")


def is_equal(one, other):
    names = ("tokens", "labels", "loss_mask", "sample_ids")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_micro_batches_are_cut_as_megatrons_sampler_cuts_them():
    def of_rank(rank):
        return sample_numbers(100, 12, micro_batch_size=2, dp_rank=rank, dp_size=3)

    assert of_rank(0) == [100, 101, 106, 107]
    assert of_rank(1) == [102, 103, 108, 109]
    assert of_rank(2) == [104, 105, 110, 111]


@pytest.mark.parametrize(("micro", "dp_size"), [(1, 1), (1, 24), (2, 3), (3, 4), (24, 1), (4, 2)])
def test_a_step_takes_the_same_samples_under_every_layout(micro, dp_size):
    step = [
        number
        for rank in range(dp_size)
        for number in sample_numbers(48, 24, micro_batch_size=micro, dp_rank=rank, dp_size=dp_size)
    ]
    assert sorted(step) == list(range(48, 72))


def test_batch_has_the_shapes_and_types_the_model_expects(blend):
    batch = BatchLoader(blend, micro_batch_size=2, dp_rank=1, dp_size=2).batch(8, 8)
    for tensor, dtype in (
        (batch.tokens, torch.int64),
        (batch.labels, torch.int64),
        (batch.loss_mask, torch.float32),
    ):
        assert (tensor.shape, tensor.dtype) == ((4, SEQ_LENGTH), dtype)
    assert batch.sample_ids.tolist() == [10, 11, 14, 15]
    assert np.array_equal(batch.tokens[2], blend[14]["tokens"])
    assert is_equal(batch.to(torch.device("cpu")), batch)


def test_a_process_that_reads_some_positions_reads_them_of_the_same_samples(blend):
    eod = int(blend[2]["tokens"][4])  # any token, taken for the one that ends documents
    positions = torch.tensor([2, 3, 12, 13])
    resets = DocumentResets(eod, positions=True, attention=True)
    whole = BatchLoader(blend, micro_batch_size=1, resets=resets).batch(2, 3)
    part = BatchLoader(blend, micro_batch_size=1, resets=resets, positions=positions).batch(2, 3)
    assert part.sample_ids.tolist() == whole.sample_ids.tolist() == [2, 3, 4]
    # boundaries are found in whole samples
    assert whole.document_starts is not None and whole.document_starts[0, 13] > 0
    for name in ("tokens", "labels", "loss_mask", "position_ids", "document_starts"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:, positions])


def test_workers_change_nothing_nor_does_the_order_of_steps(blend):
    plain = BatchLoader(blend, micro_batch_size=1)
    expected = {consumed: plain.batch(consumed, 5) for consumed in range(0, 40, 5)}
    for num_workers in (1, 3):
        loader = BatchLoader(blend, micro_batch_size=1, num_workers=num_workers)
        for consumed in [0, 5, 10, 30, 35, 0, 20, 15]:  # a resume, a jump back, a validation again
            assert is_equal(loader.batch(consumed, 5), expected[consumed])
        assert is_equal(loader.batch(20, 2), plain.batch(20, 2))  # fewer samples than workers
        assert is_equal(loader.batch(22, 3), plain.batch(22, 3))  # not the size that was read ahead
        loader.close()
        assert is_equal(loader.batch(0, 5), expected[0])
        loader.close()


def test_error_in_a_worker_is_raised_here_and_only_for_its_step():
    loader = BatchLoader(Numbers(), micro_batch_size=1, num_workers=2)
    assert loader.batch(DAMAGED - 4, 4).tokens[:, 0].tolist() == [996, 997, 998, 999]
    with pytest.raises(DataError, match=f"sample {DAMAGED} is damaged"):
        loader.batch(DAMAGED, 4)
    assert loader.batch(DAMAGED + 4, 4).tokens[:, 0].tolist() == [1004, 1005, 1006, 1007]
    loader.close()


def test_error_ahead_of_a_step_that_is_never_asked_for_does_no_harm():
    loader = BatchLoader(Numbers(), micro_batch_size=1, num_workers=1)
    loader.batch(DAMAGED - 1, 1)
    assert loader.batch(5, 1).tokens[0, 0] == 5
    loader.close()


def test_killed_worker_is_reported():
    loader = BatchLoader(Numbers(), micro_batch_size=1, num_workers=2)
    with pytest.raises(DataError, match=r"a loader process died \(exit code -9\)"):
        loader.batch(DEADLY, 2)
    loader.close()
    assert loader.batch(0, 2).sample_ids.tolist() == [0, 1]
    loader.close()


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint16, 2**16 - 1), (np.int32, 2**31 - 1)])
def test_ids_of_every_size_and_masks_arrive_as_the_dataset_gives_them(tmp_path, dtype, largest):
    ids = np.random.default_rng(0).integers(0, largest, 2000, endpoint=True)
    ids[::7], ids[3::11] = largest, 0
    with IndexedDatasetBuilder(tmp_path / "ids", dtype) as builder:
        builder.add_document(ids)
        builder.finalize()
    dataset = GPTDataset(
        IndexedDataset(tmp_path / "ids"),
        range(1),
        seq_length=SEQ_LENGTH,
        seed=1,
        name="ids",
        eod_without_loss=0,
    )
    samples = [dataset[number] for number in range(12)]
    for num_workers in (0, 2):
        loader = BatchLoader(dataset, micro_batch_size=1, num_workers=num_workers)
        for first in (0, 6):
            batch = loader.batch(first, 6)
            for name in ("tokens", "labels", "loss_mask"):
                expected = np.stack([sample[name] for sample in samples[first : first + 6]])
                found = getattr(batch, name).numpy()
                assert found.dtype == expected.dtype and np.array_equal(found, expected)
        loader.close()


def test_workers_may_find_ids_of_different_sizes():
    loader = BatchLoader(LargeNumbers(), micro_batch_size=1, num_workers=2)
    batch = loader.batch(3, 2)
    loader.close()
    assert batch.labels[:, -1].tolist() == [2**16 - 1, 2**16]


def worker_pids(loader):
    return [worker.process.pid for worker in loader._read_ahead._workers]


def test_workers_do_not_heed_signals_that_the_whole_job_gets():
    loader = BatchLoader(Numbers(), micro_batch_size=1, num_workers=1)
    loader.batch(0, 1)
    loader.batch(1, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker_pids(loader)[0], number)
        assert loader.batch(10, 1).tokens[0, 0] == 10
    loader.close()


def test_workers_end_with_their_loader():
    loader = BatchLoader(Numbers(), micro_batch_size=1, num_workers=2)
    loader.batch(0, 2)
    pids = worker_pids(loader)
    assert all(map(is_running, pids))
    del loader
    gc.collect()
    assert have_ended(pids)


SCRIPT = """
import os, signal
from megatron.data.read_ahead import ReadAhead
from tests.data.numbers_dataset import Numbers

if __name__ == "__main__":
    reader = ReadAhead(Numbers(), 2)
    reader.ask(range(8))
    reader.take()
    reader.ask(range(8, 16))
    print(*(worker.process.pid for worker in reader._workers), flush=True)
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise ValueError('a bug')", 1),
        ("os.killpg(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_no_process_outlives_a_run_however_it_ends(tmp_path, ending, code):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(ending=ending))
    process = subprocess.run(
        [sys.executable, str(script)],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path.cwd()), *sys.path])),
        capture_output=True,
        text=True,
        timeout=300,  # a worker that stays keeps the pipes open
        start_new_session=True,
    )
    assert process.returncode == code, process.stderr
    pids = [int(word) for word in process.stdout.split()]
    assert len(pids) == 2 and have_ended(pids)


def test_without_a_dataset_batches_hold_numbers_only():
    loader = BatchLoader(None, micro_batch_size=2, dp_rank=1, dp_size=2, num_workers=3)
    batch = loader.batch(8, 8)
    assert batch.sample_ids.tolist() == [10, 11, 14, 15]
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == (4, 0)
