"""A hundred sources and a billion samples: opened without files, little memory, and read anywhere alike."""

import os
from pathlib import Path

import numpy as np
import pytest

from megatron.data.build import build_datasets
from megatron.data.indexed_dataset import HEADER, MAGIC, VERSION
from megatron.options import DataConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer

NUM_SOURCES, NUM_DOCUMENTS, DOCUMENT_SIZE, SEQ_LENGTH = 100, 50_000, 1_640_000, 8192


def resident_bytes():
    """Memory of this process that is in use, maps of files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def prefixes(tmp_path):
    """One sparse token file of 82 billion tokens under a hundred names."""
    starts = np.arange(NUM_DOCUMENTS + 1, dtype="<i8")
    with (tmp_path / "s0.idx").open("wb") as index:
        index.write(HEADER.pack(MAGIC, VERSION, 8, NUM_DOCUMENTS, NUM_DOCUMENTS + 1))
        index.write(np.full(NUM_DOCUMENTS, DOCUMENT_SIZE, "<i4").tobytes())
        index.write((starts[:-1] * (2 * DOCUMENT_SIZE)).tobytes())
        index.write(starts.tobytes())
    with (tmp_path / "s0.bin").open("wb") as ids:
        ids.truncate(2 * NUM_DOCUMENTS * DOCUMENT_SIZE)
    for number in range(1, NUM_SOURCES):
        for suffix in ("idx", "bin"):
            (tmp_path / f"s{number}.{suffix}").hardlink_to(tmp_path / f"s0.{suffix}")
    return [str(tmp_path / f"s{number}") for number in range(NUM_SOURCES)]


def test_a_billion_samples_take_little_memory_and_no_files(prefixes, tmp_path):
    numbers = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=9))
    words = [word for weight, prefix in enumerate(prefixes, 1) for word in (str(weight), prefix)]
    files, before = sorted(tmp_path.iterdir()), resident_bytes()
    train = build_datasets(
        DataConfig(seq_length=SEQ_LENGTH, train_data_path=tuple(words)), numbers, seed=1
    ).train
    assert sum(source.samples_per_epoch for source in train.datasets) > 10**9
    for number in (0, 987_654_321, 10**9, 10**12):
        assert train[number]["tokens"].shape == (SEQ_LENGTH,)
        source, within = train.locate(number)
        assert train.counts(number)[source] == within
    assert resident_bytes() - before < 400e6  # some 36e6; a number of 4 bytes a sample is 4e9
    assert sorted(tmp_path.iterdir()) == files
