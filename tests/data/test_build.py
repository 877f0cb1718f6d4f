"""From options to datasets: what is opened, logged and refused."""

import logging

import numpy as np
import pytest

from megatron.data.build import build_datasets
from megatron.data.indexed_dataset_builder import IndexedDatasetBuilder
from megatron.data.origin import format_origin, origin_path
from megatron.errors import ConfigError, DataError
from megatron.options import DataConfig, TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer

EOD = 1000


@pytest.fixture(scope="module")
def numbers():
    return build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=EOD))


def write(prefix, *, first=0, num_documents=50, size=20, end=EOD):
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for document in range(num_documents):
            ids = [first + document % 50] * (size - 1)
            builder.add_document([*ids, end])
        builder.finalize()
    return str(prefix)


@pytest.fixture
def files(tmp_path):
    return {
        "a": write(tmp_path / "a_text_document", first=0),
        "b": write(tmp_path / "b_text_document", first=100),
        "long": write(tmp_path / "long_text_document", first=200, num_documents=2000),
    }


def build(tokenizer, **options):
    return build_datasets(DataConfig(seq_length=32, **options), tokenizer, seed=1)


def tokens_of(dataset, num_samples=60):
    return {token for index in range(num_samples) for token in dataset[index]["labels"].tolist()}


def test_split_gives_sets_without_a_common_document(numbers, files):
    sets = build(numbers, data_path=(files["a"],), split="60,20,20")
    parts = [
        tokens_of(part) - {EOD} for part in (sets.train, sets.valid["valid"], sets.test["test"])
    ]
    assert parts == [set(range(30)), set(range(30, 40)), set(range(40, 50))]


def test_weights_decide_which_source_gives_a_sample(numbers, files):
    sets = build(numbers, train_data_path=("3", files["a"], "1", files["b"]))
    samples = [sets.train[index]["tokens"] for index in range(400)]
    assert sum(sample.min() >= 100 for sample in samples) == 100


def test_named_sets_are_kept_apart(numbers, files):
    sets = build(
        numbers,
        train_weighted_split_paths=(f"all: 1 0:0.8 {files['a']}, 1 0:0.8 {files['b']}",),
        valid_weighted_split_paths=(f"a: 1 0.8:1 {files['a']}", f"b: 1 0.8:1 {files['b']}"),
    )
    assert list(sets.valid) == ["a", "b"] and sets.test == {}
    assert tokens_of(sets.valid["a"]) - {EOD} == set(range(40, 50))
    assert tokens_of(sets.valid["b"]) - {EOD} == set(range(140, 150))


def test_two_parts_of_one_file_have_draws_of_their_own(numbers, files):
    path = files["long"]
    sets = build(numbers, train_weighted_split_paths=(f"t: 1 0:0.5 {path}, 1 0.5:1 {path}",))
    first, second = sets.train.datasets
    starts = [
        [part.window_start(i) - part.window_start(0) for i in range(20)] for part in (first, second)
    ]
    assert starts[0] != starts[1]


def test_samples_do_not_depend_on_the_folder(numbers, files, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    write(moved / "a_text_document")
    here = build(numbers, train_data_path=(files["a"],)).train
    there = build(numbers, train_data_path=(str(moved / "a_text_document"),)).train
    assert all(np.array_equal(here[i]["tokens"], there[i]["tokens"]) for i in range(20))


def test_every_source_is_logged_on_one_line(numbers, files, caplog):
    with caplog.at_level(logging.INFO, "megatron"):
        build(numbers, data_path=("3", files["a"], "1", files["b"]), split="90,10")
    assert [record.getMessage() for record in caplog.records] == [
        "train/a_text_document: weight 0.7500, 45 documents, 900 tokens, 28 samples an epoch",
        "train/b_text_document: weight 0.2500, 45 documents, 900 tokens, 28 samples an epoch",
        "valid/a_text_document: weight 0.7500, 5 documents, 100 tokens, 3 samples an epoch",
        "valid/b_text_document: weight 0.2500, 5 documents, 100 tokens, 3 samples an epoch",
    ]


def test_default_split_leaves_out_what_is_too_short_and_says_so(numbers, files, caplog):
    with caplog.at_level(logging.INFO, "megatron"):
        sets = build(numbers, data_path=("1", files["a"], "1", files["long"]))
    assert list(sets.valid) == ["valid"] and list(sets.test) == ["test"]
    assert min(tokens_of(sets.test["test"])) >= 200  # of the long one alone
    messages = [record.getMessage() for record in caplog.records]
    assert any(
        m.startswith("test/a_text_document: 0 documents") and "left out" in m for m in messages
    )


def test_split_that_was_asked_for_and_is_too_short_is_refused(numbers, files):
    with pytest.raises(
        DataError, match=r"test/a_text_document: documents 49 to 50 .* hold 20 tokens"
    ):
        build(numbers, data_path=(files["a"],), split="90,8,2")


def test_missing_dataset_is_named_with_what_was_probably_meant(numbers, files):
    prefix = files["a"].removesuffix("_text_document")
    with pytest.raises(DataError, match=r"no dataset .*/a: .* did you mean .*/a_text_document\?"):
        build(numbers, data_path=(prefix,))
    with pytest.raises(DataError, match="given by its prefix"):
        build(numbers, data_path=("no/where",))


def test_truncated_index_is_refused(numbers, files):
    path = f"{files['a']}.idx"
    with open(path, "r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError, match=r"a_text_document\.idx is damaged"):
        build(numbers, data_path=(files["a"],))


def test_empty_dataset_is_refused(numbers, tmp_path):
    prefix = write(tmp_path / "empty", num_documents=0)
    with pytest.raises(DataError, match="hold 0 tokens"):
        build(numbers, data_path=(prefix,))


def test_ids_beyond_the_vocabulary_are_refused(numbers, tmp_path):
    prefix = write(tmp_path / "other", first=2000)
    with pytest.raises(
        DataError, match=r"ids 1000 to 2049, and the tokenizer NullTokenizer has 0 to 1000"
    ):
        build(numbers, data_path=(prefix,))


def test_data_without_end_of_document_tokens_is_noticed(numbers, tmp_path, caplog):
    prefix = write(tmp_path / "no_ends", end=7)
    with caplog.at_level(logging.INFO, "megatron"):
        build(numbers, train_data_path=(prefix,))
    assert "preprocess with --append-eod" in caplog.text


def test_data_of_another_tokenizer_is_said_aloud_and_that_of_this_one_is_not(
    numbers, tmp_path, caplog
):
    for name, fingerprint in (("ours", numbers.fingerprint()), ("other", "0123456789abcdef")):
        path = write(tmp_path / name)
        origin_path(path).write_bytes(format_origin({"tokenizer": fingerprint}))
        build(numbers, train_data_path=(path,))
    messages = [record.getMessage() for record in caplog.records if "ATTENTION" in record.msg]
    (message,) = messages
    assert message.startswith(
        f"{tmp_path / 'other'}: ATTENTION: it was made with another tokenizer"
    )
    assert "0123456789ab…" in message


def test_eod_mask_loss_reaches_the_samples(numbers, files):
    sets = build(numbers, train_data_path=(files["a"],), eod_mask_loss=True)
    masked = [sets.train[i]["loss_mask"][sets.train[i]["tokens"] == EOD].sum() for i in range(20)]
    assert masked == [0.0] * 20


def test_fill_in_the_middle_needs_its_tokens(numbers, files):
    with pytest.raises(ConfigError, match="--fim-rate"):
        build(numbers, train_data_path=(files["a"],), fim_rate=0.5)


@pytest.fixture(scope="module")
def code(tokenizer, source_texts, tmp_path_factory):
    """The prefix of real source code."""
    prefix = tmp_path_factory.mktemp("code") / "code"
    with IndexedDatasetBuilder(prefix, np.uint16) as builder:
        for text in source_texts:
            builder.add_document([*tokenizer.tokenize(text), tokenizer.eod])
        builder.finalize()
    return str(prefix)


def has_fim(dataset, tokenizer):
    """Say whether samples hold fill-in-the-middle: all but a few, or none at all."""
    middle = tokenizer.special_tokens["<fim_middle>"]
    count = sum(middle in dataset[index]["tokens"] for index in range(20))
    assert count == 0 or count >= 18
    return count > 0


@pytest.mark.parametrize(
    ("rate", "eval_fim", "expected"),
    [
        (0.0, "both", {"valid": False}),
        (0.0, "with", {"valid": False}),
        (1.0, "both", {"valid": False, "valid+fim": True}),
        (1.0, "with", {"valid+fim": True}),
        (1.0, "without", {"valid": False}),
    ],
)
def test_sets_are_evaluated_with_fill_in_the_middle_and_without(
    tokenizer, code, rate, eval_fim, expected
):
    paths = {f"{part}_data_path": (code,) for part in ("train", "valid", "test")}
    sets = build(tokenizer, **paths, fim_rate=rate, eval_fim=eval_fim)
    assert has_fim(sets.train, tokenizer) == (rate > 0)
    assert {name: has_fim(one, tokenizer) for name, one in sets.valid.items()} == expected
    assert list(sets.test) == [name.replace("valid", "test") for name in expected]


def test_a_set_is_the_same_documents_with_fill_in_the_middle_and_without(tokenizer, code):
    sets = build(tokenizer, train_data_path=(code,), valid_data_path=(code,), fim_rate=1.0)
    sentinels = list(tokenizer.special_tokens.values())
    plain, permuted = (sets.valid[name][3]["tokens"] for name in ("valid", "valid+fim"))
    # whole tokens come back, whatever their order: all but those at cuts, and those that the sample's end cut off
    left = np.setdiff1d(permuted, sentinels)
    assert np.isin(left, plain).mean() > 0.8


def test_names_that_fim_would_give_to_two_sets_are_refused(tokenizer, code):
    groups = tuple(f"{name}: 1 0:1 {code}" for name in ("a", "a+fim"))
    paths = {"train_data_path": (code,), "valid_weighted_split_paths": groups}
    with pytest.raises(ConfigError, match=r"a\+fim would name two sets"):
        build(tokenizer, **paths, fim_rate=0.5)
    assert list(build(tokenizer, **paths).valid) == ["a", "a+fim"]
