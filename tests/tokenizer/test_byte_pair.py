"""The encoder of csrc/ gives the ids of the `tokenizers` package on whatever it is given."""

import copy
import json
import random
import runpy
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from megatron.errors import DataError
from megatron.tokenizer.byte_pair import UnsupportedError, make_encoder
from megatron.tokenizer.json_tokenizer import JsonTokenizer, add_special_tokens, token_bytes_of
from tests.tokenizer.fuzz_byte_pair import PRE_TOKENIZERS, Comparison, comparisons, texts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def each() -> dict[str, Comparison]:
    return comparisons()


def encoder_of(definition: dict):
    return make_encoder(definition, token_bytes_of(definition))


@pytest.mark.parametrize(
    "name", [*PRE_TOKENIZERS, "ignore_merges", "merges that are never ignored"]
)
def test_ids_equal_the_tokenizers_package(each, name):
    count = 10_000 if name == "StarCoder" else 2_000
    assert each[name].first_difference(texts(0, count)) is None


@pytest.mark.parametrize("name", ["StarCoder", "GPT-2", "Llama 3"])
def test_ids_equal_whatever_characters_meet(each, name):
    codes = [*range(0x3000), *range(0x3000, 0x110000, 11)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    rng = random.Random(0)
    alone = ["a" + "a".join(characters[start::400]) for start in range(400)]
    spaced = [" '" + " '".join(rng.sample(characters, 100)) for _ in range(200)]
    assert each[name].first_difference(alone + spaced) is None


def test_unicode_classes_are_those_of_the_installed_package():
    script = runpy.run_path(str(ROOT / "csrc/make_unicode_classes.py"))
    header = (ROOT / "csrc/unicode_classes.h").read_text()
    for name, ranges in script["classes"]().items():
        table = header.split(f"{name}[] = {{")[1].split("};")[0]
        written = [
            int(number, 16)
            for number in table.replace("{", " ").replace("}", " ").replace(",", " ").split()
        ]
        assert written == [code for span in ranges for code in span], name


@pytest.mark.parametrize("unit", ["a", "ab", " ", "=", "\u6f22", "\n", "\t ", "xyzzy"])
def test_a_piece_of_a_million_bytes_costs_no_square_of_its_length(each, unit):
    text = unit * (1_000_000 // len(unit.encode()))
    ids, sizes = each["StarCoder"].ours.encode_batch([text])
    assert each["StarCoder"].ours.decode(ids) == text.encode() and sizes.tolist() == [len(ids)]
    assert each["StarCoder"].first_difference([text[: 100_000 // len(unit)]]) is None


def test_more_pieces_than_are_remembered_encode_all_the_same(each):
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_letters, k=7)) for _ in range(60_000)]
    numbered = [
        f"{word} {word[::-1]}{letter}" for letter in string.ascii_letters[:12] for word in words
    ]
    batch = [" ".join(numbered[start : start + 1000]) for start in range(0, len(numbered), 1000)]
    encoder = each["StarCoder"].ours
    first, sizes = encoder.encode_batch(batch)
    again, sizes_again = encoder.encode_batch(batch)
    assert np.array_equal(first, again) and np.array_equal(sizes, sizes_again)
    assert each["StarCoder"].first_difference([batch[0], batch[-1]]) is None


@pytest.mark.parametrize("num_threads", [2, 5, 64])
def test_threads_change_nothing(each, num_threads):
    batch = texts(3, 500)
    alone = each["GPT-2"].ours.encode_batch(batch)
    together = each["GPT-2"].ours.encode_batch(batch, num_threads=num_threads)
    assert np.array_equal(alone[0], together[0]) and np.array_equal(alone[1], together[1])


def test_bytes_and_strings_and_no_texts(each):
    encoder, batch = each["StarCoder"].ours, texts(4, 60)
    as_text, as_bytes = (
        encoder.encode_batch(batch),
        encoder.encode_batch([t.encode() for t in batch]),
    )
    assert np.array_equal(as_text[0], as_bytes[0]) and np.array_equal(as_text[1], as_bytes[1])
    assert as_text[0].dtype == np.int32 and as_text[1].dtype == np.int64
    assert [len(part) for part in encoder.encode_batch([])] == [0, 0]
    assert encoder.encode_batch(["", b"", "a"])[1].tolist() == [0, 0, 1]


class OnDemand(Sequence):
    """Makes its items when they are asked for and keeps none."""

    def __len__(self):
        return 500

    def __getitem__(self, index):
        if not 0 <= index < 500:
            raise IndexError
        return f"def f{index}(x):\n    return x * {index}\n" * 3


def test_texts_that_nobody_else_holds(each):
    encoder = each["StarCoder"].ours
    ids, sizes = encoder.encode_batch(OnDemand())
    assert encoder.decode(ids) == "".join(OnDemand()).encode() and len(sizes) == 500
    words = np.array(["abc def", "b", "c" * 40])
    assert encoder.decode(encoder.encode_batch(words)[0]).decode() == "".join(words)


def test_utf8_is_checked_as_python_does(each):
    encoder, rng = each["StarCoder"].ours, random.Random(0)
    edges = [
        0x00,
        0x7F,
        0x80,
        0x8F,
        0x90,
        0x9F,
        0xA0,
        0xBF,
        0xC1,
        0xC2,
        0xDF,
        0xE0,
        0xEC,
        0xED,
        0xEF,
        0xF0,
        0xF4,
        0xF5,
        0xFF,
    ]
    for _ in range(20_000):
        text = bytes(rng.choices(edges, k=rng.randint(1, 5)))
        text = b"a" * rng.choice([0, 7, 8]) + text
        try:
            expected = text.decode()
        except UnicodeDecodeError:
            with pytest.raises(UnicodeDecodeError):
                encoder.encode_batch([text])
        else:
            assert encoder.decode(encoder.encode_batch([text])[0]).decode() == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"abcdefgh\xff", UnicodeDecodeError),
        (b"\xe2\x82", UnicodeDecodeError),
        (b"\xed\xa0\x80", UnicodeDecodeError),
        ("\ud800", UnicodeEncodeError),
        (7, TypeError),
    ],
)
def test_what_is_no_text_is_refused(each, text, error):
    with pytest.raises(error):
        each["StarCoder"].ours.encode_batch(["before", text])


def test_decoding_gives_bytes_back_and_names_ids_beyond_the_vocabulary(each):
    encoder = each["Llama 3"].ours
    for text in texts(5, 200):
        assert encoder.decode(encoder.encode_batch([text])[0]) == text.encode()
    assert encoder.decode(np.array([], np.int64)) == b""
    for wrong in (-1, 1 << 20):
        with pytest.raises(IndexError, match="beyond the vocabulary"):
            encoder.decode([wrong])


def unsupported(change) -> dict:
    definition = json_definition()
    change(definition)
    return definition


def json_definition() -> dict:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {"<|endoftext|>": 0} | {char: 1 + i for i, char in enumerate(sorted(alphabet))}
    vocab["ab"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b")]))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS["GPT-2"]
    definition = json.loads(tokenizer.to_str())
    definition["model"]["merges"] = [["a", "b"]]
    add_special_tokens(definition, ["<|endoftext|>"])
    return definition


def plain_token(definition):
    add_special_tokens(definition, ["<tool>"])
    definition["added_tokens"][-1]["special"] = False


UNSUPPORTED = {
    "normaliser": lambda d: d.update(normalizer={"type": "NFC"}),
    "prefix space": lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
    "whole text": lambda d: d["pre_tokenizer"].update(use_regex=False),
    "other expression": lambda d: d.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False},
                dict(d["pre_tokenizer"], use_regex=False),
            ],
        }
    ),
    "digits in runs": lambda d: d.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": False}, d["pre_tokenizer"]],
        }
    ),
    "suffix": lambda d: d["model"].update(continuing_subword_prefix="ab"),
    "added token": plain_token,
    "id of two tokens": lambda d: d["model"]["vocab"].update(zz=d["model"]["vocab"]["a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_definition_that_is_not_served_goes_through_the_package_and_says_so(name, caplog):
    definition = unsupported(UNSUPPORTED[name])
    with pytest.raises(UnsupportedError):
        encoder_of(definition)
    if name == "suffix":
        return  # the package refuses it too, for this vocabulary
    caplog.set_level("INFO", "megatron")
    tokenizer = JsonTokenizer("test", definition, eod="<|endoftext|>")
    lines = [record.message for record in caplog.records if "slower than csrc/" in record.message]
    assert len(lines) == 1
    ids, sizes = tokenizer.encode_batch(["ab c", b"ab"])
    parts = [tokenizer.tokenize("ab c"), tokenizer.tokenize("ab")]
    assert ids.tolist() == parts[0] + parts[1] and sizes.tolist() == list(map(len, parts))


def test_merges_that_do_not_fit_the_vocabulary_are_an_error():
    definition = copy.deepcopy(json_definition())
    definition["model"]["merges"].append(["b", "a"])
    with pytest.raises(DataError, match="'ba'"):
        encoder_of(definition)
