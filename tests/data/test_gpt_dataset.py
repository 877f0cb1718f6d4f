"""Samples of a token file: each token once an epoch, in windows found by arithmetic."""

import pickle

import numpy as np
import pytest

from megatron.data.fim import FillInTheMiddle
from megatron.data.gpt_dataset import GPTDataset
from megatron.data.indexed_dataset import IndexedDataset
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.errors import DataError

SIZES = [5, 1, 40, 17, 3, 28, 9]
NUM_TOKENS = sum(SIZES)  # 103: token i of the file is number i


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("tokens") / "numbers"
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        start = 0
        for size in SIZES:
            builder.add_document(np.arange(start, start + size))
            start += size
        builder.finalize()
    return IndexedDataset(prefix)


def whole(indexed, seq_length=10, *, seed=1234, name="train", **options):
    return GPTDataset(
        indexed, range(len(SIZES)), seq_length=seq_length, seed=seed, name=name, **options
    )


def test_sample_is_a_window_of_consecutive_tokens(indexed):
    dataset = whole(indexed)
    for index in range(25):
        sample = dataset[index]
        start = sample["tokens"][0]
        assert sample["tokens"].tolist() == list(range(start, start + 10))
        assert sample["labels"].tolist() == list(range(start + 1, start + 11))
        assert sample["loss_mask"].tolist() == [1.0] * 10
        assert (sample["tokens"].dtype, sample["labels"].dtype) == (np.int64, np.int64)
        assert sample["loss_mask"].dtype == np.float32


@pytest.mark.parametrize("seq_length", [1, 2, 7, 10, 17, 51, 101, 102])
def test_every_window_comes_exactly_once_an_epoch(indexed, seq_length):
    dataset = whole(indexed, seq_length)
    num_samples = dataset.samples_per_epoch
    assert num_samples == (NUM_TOKENS - 1) // seq_length
    for epoch in range(5):
        samples = range(epoch * num_samples, (epoch + 1) * num_samples)
        tokens = np.sort(np.concatenate([dataset[index]["tokens"] for index in samples]))
        # Windows do not overlap and leave no gap: what an epoch leaves out lies before the first and after the last.
        assert tokens.tolist() == list(range(tokens[0], tokens[0] + num_samples * seq_length))


def test_over_epochs_every_token_is_read_and_predicted(indexed):
    dataset = whole(indexed, 70)  # one window an epoch, 32 tokens left over
    assert dataset.samples_per_epoch == 1
    read, predicted = set(), set()
    for epoch in range(400):
        read |= set(dataset[epoch]["tokens"].tolist())
        predicted |= set(dataset[epoch]["labels"].tolist())
    assert read == set(range(NUM_TOKENS - 1))
    assert predicted == set(range(1, NUM_TOKENS))


def test_epochs_come_in_different_orders(indexed):
    dataset = whole(indexed)
    orders = {tuple(dataset.window_start(10 * epoch + i) for i in range(10)) for epoch in range(20)}
    assert len(orders) == 20


def test_order_is_a_function_of_seed_and_name(indexed):
    def order(**options):
        dataset = whole(indexed, 3, **options)
        return [dataset.window_start(index) for index in range(34)]

    assert order() == order()
    assert order() != order(seed=1235)
    assert order() != order(name="valid")


def test_range_of_documents_is_all_that_is_read(indexed):
    dataset = GPTDataset(indexed, range(2, 5), seq_length=7, seed=1, name="part")
    assert (dataset.num_documents, dataset.num_tokens, dataset.samples_per_epoch) == (3, 60, 8)
    read = {token for index in range(200) for token in dataset[index]["tokens"].tolist()}
    assert (min(read), max(read)) == (6, 64)


def test_neighbouring_ranges_share_no_token(indexed):
    first = GPTDataset(indexed, range(3), seq_length=5, seed=1, name="a")
    second = GPTDataset(indexed, range(3, 7), seq_length=5, seed=1, name="b")
    of_first = {t for i in range(50) for t in first[i]["labels"].tolist()}
    of_second = {t for i in range(50) for t in second[i]["tokens"].tolist()}
    assert max(of_first) < min(of_second)


def test_range_with_fewer_tokens_than_a_sample_is_refused(indexed):
    assert whole(indexed, NUM_TOKENS - 1).samples_per_epoch == 1
    with pytest.raises(DataError, match=r"hold 103 tokens, and one sample takes 104; give more"):
        whole(indexed, NUM_TOKENS)
    with pytest.raises(DataError, match=r"documents 1 to 1 of .* hold 0 tokens"):
        GPTDataset(indexed, range(1, 1), seq_length=5, seed=1, name="empty")


def test_negative_sample_is_refused(indexed):
    with pytest.raises(IndexError, match="start at 0"):
        whole(indexed)[-1]


def test_end_of_document_without_loss_masks_what_follows_it_as_megatron_does(indexed):
    dataset = whole(indexed, eod_without_loss=50)
    for index in range(dataset.samples_per_epoch):
        sample = dataset[index]
        assert sample["loss_mask"].tolist() == [float(token != 50) for token in sample["tokens"]]


def test_padding_of_fill_in_the_middle_carries_no_loss(indexed):
    class ShortByThree:
        def __call__(self, window, key):
            return np.concatenate([window[:-3], [999, 999, 999]]), len(window) - 3

    sample = whole(indexed, fim=ShortByThree())[0]
    assert sample["labels"].tolist()[-3:] == [999] * 3
    assert sample["loss_mask"].tolist() == [1.0] * 7 + [0.0] * 3


def test_fill_in_the_middle_is_drawn_anew_for_each_sample_and_dataset(indexed):
    keys = []

    class Recorder:
        def __call__(self, window, key):
            keys.append(key)
            return window, len(window)

    for name in ("train/a", "train/b"):
        dataset = whole(indexed, name=name, fim=Recorder())
        for index in (0, 1, 10, 11, 0):
            dataset[index]
    assert len(set(keys)) == 8 and keys[0] == keys[4] and keys[5] == keys[9]


def test_samples_of_real_text_with_fill_in_the_middle(tokenizer, source_texts, tmp_path):
    with IndexedDatasetBuilder(tmp_path / "code", np.uint16) as builder:
        for text in source_texts:
            builder.add_document([*tokenizer.tokenize(text), tokenizer.eod])
        builder.finalize()
    dataset = GPTDataset(
        IndexedDataset(tmp_path / "code"),
        range(len(source_texts)),
        seq_length=256,
        seed=1,
        name="train",
        fim=FillInTheMiddle(tokenizer, rate=0.5),
    )
    copy = pickle.loads(pickle.dumps(dataset))
    num_transformed, middle = 0, tokenizer.special_tokens["<fim_middle>"]
    for index in range(60):
        sample, again = dataset[index], copy[index]
        assert all(np.array_equal(sample[key], again[key]) for key in sample)
        assert np.array_equal(sample["tokens"][1:], sample["labels"][:-1])
        num_transformed += middle in sample["tokens"]
    assert 15 < num_transformed < 45


def test_large_dataset_opens_without_a_pass_over_it(tmp_path):
    """A sparse file of 2^33 tokens: reading or indexing it all would take minutes and gigabytes."""
    num_documents, size = 1000, 2**33 // 1000
    with IndexedDatasetBuilder(tmp_path / "big", np.uint16) as builder:
        for _ in range(num_documents):
            builder.add_document([])
        builder.finalize()
    rewrite_sizes(tmp_path / "big", size)
    dataset = GPTDataset(
        IndexedDataset(tmp_path / "big"), range(num_documents), seq_length=8192, seed=1, name="big"
    )
    assert dataset.samples_per_epoch == (num_documents * size - 1) // 8192
    assert dataset[10**12]["tokens"].shape == (8192,)


def rewrite_sizes(prefix, size):
    """Give every document `size` tokens of zeros, without writing them."""
    path = prefix.with_name(prefix.name + ".idx")
    content = bytearray(path.read_bytes())
    number = int.from_bytes(content[18:26], "little")
    content[34 : 34 + 4 * number] = np.full(number, size, "<i4").tobytes()
    content[34 + 4 * number : 34 + 12 * number] = (
        2 * size * np.arange(number, dtype="<i8")
    ).tobytes()
    path.write_bytes(content)
    with prefix.with_name(prefix.name + ".bin").open("wb") as file:
        file.truncate(2 * size * number)
