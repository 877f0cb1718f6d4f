"""Rows of an import, whatever blocks they come in."""

import itertools

import pytest
import torch

from megatron.config import Config
from megatron.convert.imported import Import, ImportedTensor, ImportReader
from megatron.options import ModelConfig

WEIGHT = torch.randn(11, 3, 2).bfloat16()


@pytest.fixture(params=[1, 4, 11], ids="blocks of {}".format)
def source(request, tmp_path):
    tensors = [ImportedTensor("w", (11, 3, 2), lambda: iter(WEIGHT.split(request.param)))]
    config = Config(model=ModelConfig(vocab_size=5))
    return ImportReader(Import("origin", config, tensors), tmp_path)


@pytest.mark.parametrize("cuts", [[0, 11], [0, 1, 2, 7, 11], [0, 5, 3, 9], [9, 11, 0, 4]])
def test_rows_are_those_of_the_whole_tensor_in_fp32(source, cuts):
    for first, last in itertools.pairwise(cuts):
        if first < last:
            rows = source.read("model.w", slice(first, last))
            assert rows.dtype == torch.float32
            assert torch.equal(rows, WEIGHT[first:last].float())


def test_names_are_those_of_a_checkpoint(source):
    assert source.names() == ["model.w"]
    assert (source.shape("model.w"), source.dtype("model.w")) == ((11, 3, 2), torch.float32)
    assert (source.state, source.config) == ({}, {"model": {"vocab_size": 5}})
