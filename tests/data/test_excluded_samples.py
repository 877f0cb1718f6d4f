"""What an opt-out list names occupies no token of any sample, and nothing else moves to another set."""

import json
import logging
import pickle

import numpy as np
import pytest

from megatron.data.build import build_datasets
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.provenance import ProvenanceWriter, provenance_path
from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer

NUM_DOCUMENTS = 60
EOD = 1000


@pytest.fixture(scope="module")
def numbers():
    return build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=EOD))


@pytest.fixture
def prefix(tmp_path):
    """Document d is made of the id d, is of repository d % 7, and has 5 to 25 tokens."""
    prefix = tmp_path / "py_text_document"
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for document in range(NUM_DOCUMENTS):
            builder.add_document([document] * (5 + document * 7 % 20) + [EOD])
        builder.finalize()
    writer = ProvenanceWriter(provenance_path(prefix), ["repo"])
    writer.add({"repo": [f"r{document % 7}" for document in range(NUM_DOCUMENTS)]})
    writer.close()
    return str(prefix)


@pytest.fixture
def optout(tmp_path):
    path = tmp_path / "optout.jsonl"
    lines = [{"repo": "r3"}, {"repo": "r4"}, {"dataset": "py_text_document", "document": 58}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


OPTED_OUT = {d for d in range(NUM_DOCUMENTS) if d % 7 in (3, 4)} | {58}


def build(tokenizer, **options):
    options = {"seq_length": 16, "split": "60,20,20", **options}
    return build_datasets(DataConfig(**options), tokenizer, seed=1)


def documents_of(dataset):
    """The documents that many epochs read or predict."""
    samples = [dataset[index] for index in range(40 * dataset.samples_per_epoch)]
    return {
        int(token) for sample in samples for key in ("tokens", "labels") for token in sample[key]
    } - {EOD}


def sets_of(datasets):
    return [datasets.train, datasets.valid["valid"], datasets.test["test"]]


def test_excluded_documents_are_in_no_sample_and_the_others_keep_their_set(numbers, prefix, optout):
    before = [documents_of(one) for one in sets_of(build(numbers, data_path=(prefix,)))]
    assert before == [set(range(36)), set(range(36, 48)), set(range(48, 60))]
    datasets = build(numbers, data_path=(prefix,), exclude_documents=(optout,))
    assert [documents_of(one) for one in sets_of(datasets)] == [one - OPTED_OUT for one in before]


def test_kept_tokens_come_in_order_and_exactly_once_an_epoch(numbers, prefix, optout):
    dataset = build(numbers, data_path=(prefix,), exclude_documents=(optout,)).train
    kept = [
        token
        for document in range(36)
        if document not in OPTED_OUT
        for token in [document] * (5 + document * 7 % 20) + [EOD]
    ]
    size = dataset.samples_per_epoch
    assert size == (len(kept) - 1) // 16
    for epoch in range(4):
        samples = {
            dataset.window_start(index): dataset[index]
            for index in range(epoch * size, (epoch + 1) * size)
        }
        first = min(samples)
        tokens = np.concatenate([samples[start]["tokens"] for start in sorted(samples)])
        assert sorted(samples) == list(range(first, first + 16 * size, 16))
        assert tokens.tolist() == kept[first : first + 16 * size]


def test_workers_get_the_same_samples(numbers, prefix, optout):
    dataset = build(numbers, data_path=(prefix,), exclude_documents=(optout,)).train
    copy = pickle.loads(pickle.dumps(dataset))
    for index in range(2 * dataset.samples_per_epoch):
        assert np.array_equal(dataset[index]["labels"], copy[index]["labels"])


def test_log_counts_what_is_left(numbers, prefix, optout, caplog):
    with caplog.at_level(logging.INFO, "megatron"):
        build(numbers, data_path=(prefix,), exclude_documents=(optout,))
    assert "train/py_text_document: weight 1.0000, 26 documents" in caplog.text
    num_tokens = sum(6 + document * 7 % 20 for document in OPTED_OUT)
    expected = f"{prefix}: excluded {len(OPTED_OUT)} documents, {num_tokens} tokens by {optout}"
    assert expected in caplog.text


def test_hash_of_every_list_is_kept(numbers, prefix, optout):
    datasets = build(numbers, data_path=(prefix,), exclude_documents=(optout, optout))
    assert len(datasets.excluded_sha256) == 2 and len(datasets.excluded_sha256[0]) == 64
    assert build(numbers, data_path=(prefix,)).excluded_sha256 == ()


def write_list(tmp_path, documents):
    path = tmp_path / "many.jsonl"
    lines = [{"dataset": "py_text_document", "document": number} for number in documents]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_set_that_a_list_empties_is_refused(numbers, prefix, tmp_path):
    path = write_list(tmp_path, range(36, 48))
    with pytest.raises(DataError, match="without the 12 excluded ones hold 0 tokens"):
        build(numbers, data_path=(prefix,), exclude_documents=(path,))


def test_set_by_default_that_a_list_empties_is_left_out(numbers, prefix, tmp_path):
    path = write_list(tmp_path, range(40, 60))
    datasets = build(numbers, data_path=(prefix,), split=None, exclude_documents=(path,))
    assert datasets.valid == {} and documents_of(datasets.train) == set(range(40))


def test_passing_over_needs_something_to_pass_over(prefix):
    config = DataConfig(seq_length=16, data_path=(prefix,), exclude_documents_skip=("wiki",))
    with pytest.raises(ConfigError, match="give both"):
        config.check()
