"""A tokenizer.json from elsewhere may hold anything: what is not one is refused by name before anything is made of it."""

import copy
import json

import pytest

from megatron.errors import DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def definition(corpus):
    return json.loads(corpus.tokenizer.read_text())


def _build(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))


CASES = {
    "no vocabulary": (("model", "vocab"), 3, "model.vocab is 3"),
    "a list of tokens": (("model", "vocab"), ["a"], "model.vocab is a list of 1"),
    "a text for an id": (("model", "vocab", "a"), "7", "id of 'a' is '7'"),
    "true for an id": (("model", "vocab", "a"), True, "id of 'a' is True"),
    "an id below 0": (("model", "vocab", "a"), -1, "id of 'a' is -1"),
    "an id of a trillion": (("model", "vocab", "a"), 10**12, "id of 'a' is 1000000000000"),
    "an id that is no number": (("model", "vocab", "a"), float("nan"), "id of 'a' is nan"),
    "two tokens of an id": (("model", "vocab", "a"), 7, "tokens with an id each"),
    "half of a character": (("model", "vocab", "\ud800"), 9999, "half of a surrogate pair"),
    "no merges": (("model", "merges"), None, "model.merges is None"),
    "a merge of one": (("model", "merges", 0), ["a"], "merge is a list of 1"),
    "a merge of numbers": (("model", "merges", 0), [1, 2], "merge is a list of 2"),
    "a merge of a merge": (("model", "merges", 0), [["a"], "b"], "merge is a list of 2"),
    "a number for unknown": (("model", "unk_token"), 5, "unk_token is 5"),
    "a prefix that no token has": (
        ("model", "continuing_subword_prefix"),
        "##",
        "and has to be a token that starts with '##'",
    ),
    "a prefix that is a number": (
        ("model", "continuing_subword_prefix"),
        7,
        "continuing_subword_prefix is 7",
    ),
    "an added token that is text": (("added_tokens", 0), "x", "added token is 'x'"),
    "an added token of nothing": (("added_tokens", 0, "content"), "", "added token is an object"),
    "an added token's id": (("added_tokens", 0, "id"), 1, "that of no other token"),
    "an added token's id as text": (("added_tokens", 0, "id"), "0", "id of '<|endoftext|>' is '0'"),
    "a stage that is a number": (("pre_tokenizer",), 0.5, "pre_tokenizer is 0.5"),
    "a stage without a type": (("normalizer",), {"a": 1}, "normalizer is an object of 1"),
    "stages that are numbers": (("pre_tokenizer", "pretokenizers", 0), 7, "pre_tokenizer is 7"),
    "stages that are none": (("pre_tokenizer", "pretokenizers"), 7, "pre_tokenizer is an object"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_definition_is_refused_by_name(definition, tmp_path, case):
    place, value, message = CASES[case]
    changed = copy.deepcopy(definition)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        _build(tmp_path, json.dumps(changed))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, b"\xff\xfe{", b""])
def test_what_cannot_be_parsed_is_refused(tmp_path, text):
    with pytest.raises(DataError, match="is not JSON"):
        _build(tmp_path, text)


def test_a_vocabulary_of_gpt2_is_checked_alike(definition, tmp_path):
    vocab = definition["model"]["vocab"]
    (tmp_path / "merges.txt").write_text("")
    for number in ("7", -1, 10**12, [1], None):
        (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"a": number}))
        options = {"vocab_file": f"{tmp_path}/vocab.json", "merge_file": f"{tmp_path}/merges.txt"}
        with pytest.raises(DataError, match="id of 'a' is"):
            build_tokenizer(TokenizerConfig(tokenizer_type="GPT2BPETokenizer", **options))


def test_an_end_token_that_is_no_text_is_refused(corpus, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(corpus.tokenizer.read_bytes())
    options = TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
    for value in (["a"], 7, {"content": 7}, {"content": ["a"]}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        with pytest.raises(DataError, match="an eos_token that is no text"):
            build_tokenizer(options)
