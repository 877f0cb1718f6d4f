"""Exported tokenizers, loaded by AutoTokenizer."""

import json

import pytest
from transformers import AutoTokenizer

from megatron.convert.hf_tokenizer import write_tokenizer
from megatron.options import TokenizerConfig
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.convert.runs import TEXTS, VOCAB_SIZE, write_tokenizer_files

TEXT = "def f(x):\n\treturn 1234 + x  # don 't . \u00e9\u6f22\U0001f600\r\n"


@pytest.fixture
def kept(tmp_path):
    write_tokenizer_files(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def export(kept, folder, **options):
    options = {"tokenizer_file": str(kept / "tokenizer.json")} | options
    tokenizer = build_tokenizer(TokenizerConfig(**options))
    folder.mkdir()
    write_tokenizer(tokenizer, kept, folder, 8192)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def test_plain_text_has_the_same_ids_and_comes_back_exactly(kept, tmp_path):
    ours, theirs = export(kept, tmp_path / "export")
    for text in (TEXT, *TEXTS, "0123 x  =    1"):
        assert theirs(text)["input_ids"] == ours.tokenize(text)
        assert theirs.decode(ours.tokenize(text)) == text
    assert len(theirs) == VOCAB_SIZE == ours.vocab_size


def test_sentinels_are_special_tokens_with_their_ids(kept, tmp_path):
    _, theirs = export(kept, tmp_path / "export")
    for number, token in enumerate(STARCODER_SPECIAL_TOKENS):
        assert theirs(token)["input_ids"] == [number]
        assert theirs.convert_ids_to_tokens(number) == token
    prompt = "<fim_prefix>a<fim_suffix>b<fim_middle>"
    ids = theirs(prompt)["input_ids"]
    assert (ids[0], ids[2], ids[4]) == (1, 3, 2)
    assert theirs.decode(ids) == prompt
    assert theirs.decode(ids, skip_special_tokens=True) == "ab"
    assert set(theirs.all_special_tokens) == set(STARCODER_SPECIAL_TOKENS)


def test_roles_and_length_are_set(kept, tmp_path):
    _, theirs = export(kept, tmp_path / "export")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 0, 0)
    assert theirs.model_max_length == 8192
    assert theirs.clean_up_tokenization_spaces is False


def test_sentinels_that_the_file_does_not_call_special_are(kept, tmp_path):
    definition = json.loads((kept / "tokenizer.json").read_text())
    for token in definition["added_tokens"]:
        token["special"] = token["content"] == "<|endoftext|>"
    (kept / "tokenizer.json").write_text(json.dumps(definition))
    _, theirs = export(kept, tmp_path / "export")
    assert theirs.decode([1, 3, 2], skip_special_tokens=True) == ""


def test_what_a_hugging_face_tokenizer_brought_along_stays(kept, tmp_path):
    config = {
        "eos_token": "<fim_pad>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": True,
    }
    (kept / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = export(
        kept,
        tmp_path / "export",
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=str(kept),
    )
    assert ours.eod == theirs.eos_token_id == 4
    assert theirs.padding_side == "left"
    assert theirs.clean_up_tokenization_spaces is False


def test_a_tokenizer_of_another_kind_is_copied(kept, tmp_path):
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_file=str(kept / "tokenizer.json")))
    (kept / "tokenizer.json").rename(kept / "tokenizer.model")
    (tmp_path / "export").mkdir()
    write_tokenizer(tokenizer, kept, tmp_path / "export", 10)
    assert [file.name for file in (tmp_path / "export").iterdir()] == ["tokenizer.model"]
