"""What a run has read of each source, against a count of the samples themselves."""

from collections import Counter

import numpy as np
import pytest

from megatron.data.blended_dataset import BlendedDataset
from megatron.data.consumption import consumption
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder

SEQ_LENGTH = 8


@pytest.fixture
def blend(tmp_path):
    datasets = []
    for number, num_documents in enumerate((9, 30, 4)):
        with IndexedDatasetBuilder(tmp_path / str(number), np.uint16) as builder:
            for _ in range(num_documents):
                builder.add_document([number] * 5)
            builder.finalize()
        indexed = IndexedDataset(tmp_path / str(number))
        datasets.append(
            GPTDataset(
                indexed, range(num_documents), seq_length=SEQ_LENGTH, seed=1, name=f"train/{number}"
            )
        )
    return BlendedDataset(datasets, [0.5, 0.3, 0.2], "train")


@pytest.mark.parametrize("num_samples", [0, 1, 37])
def test_counts_are_those_of_the_samples(blend, num_samples):
    read = Counter(int(blend[index]["tokens"][0]) for index in range(num_samples))
    result = consumption(blend, num_samples, seq_length=SEQ_LENGTH)
    assert [one.source for one in result] == ["train/0", "train/1", "train/2"]
    assert [one.samples for one in result] == [read[number] for number in range(3)]
    assert [one.tokens for one in result] == [SEQ_LENGTH * read[number] for number in range(3)]
    # 45 tokens are 5 windows of 8 and the label after the last
    assert result[0].epochs == read[0] / 5


def test_a_single_source_has_nothing_to_tell(blend):
    assert consumption(blend.datasets[0], 5, seq_length=SEQ_LENGTH) == []
