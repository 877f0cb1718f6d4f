import inspect
import json
import random

import pytest
import tokenizers

from megatron.errors import ConfigError, DataError
from megatron.tokenizer.special_tokens import STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.train import train_tokenizer
from tests.tokenizer.conftest import CODE, hard_texts


def test_sentinels_have_ids_0_to_18_and_bytes_follow(definition):
    # The order of StarCoder's special_tokens_map, written out.
    expected = [
        "<|endoftext|>",
        "<fim_prefix>",
        "<fim_middle>",
        "<fim_suffix>",
        "<fim_pad>",
        "<filename>",
        "<gh_stars>",
        "<issue_start>",
        "<issue_comment>",
        "<issue_closed>",
        "<jupyter_start>",
        "<jupyter_text>",
        "<jupyter_code>",
        "<jupyter_output>",
        "<empty_output>",
        "<commit_before>",
        "<commit_msg>",
        "<commit_after>",
        "<reponame>",
    ]
    assert list(STARCODER_SPECIAL_TOKENS) == expected
    added = definition["added_tokens"]
    assert [(token["id"], token["content"]) for token in added] == list(enumerate(expected))
    assert all(token["special"] for token in added)
    vocab = definition["model"]["vocab"]
    assert len(vocab) == 600
    assert sorted(vocab[token] for token in vocab if len(token) == 1) == list(range(19, 275))


def test_every_digit_is_a_token_of_its_own(definition):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    assert tokenizer.encode("x=12345").tokens[-5:] == list("12345")
    for token in definition["model"]["vocab"]:
        assert len(token) == 1 or not any(char.isdigit() for char in token)


def test_the_definition_decodes_what_it_encodes(definition):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    for text in hard_texts():
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_order_of_the_texts_does_not_matter():
    lines = CODE.splitlines(keepends=True) * 2
    shuffled = random.Random(0).sample(lines, len(lines))
    assert train_tokenizer(lines, 500) == train_tokenizer(shuffled, 500)


def test_a_larger_vocabulary_extends_a_smaller_one_and_shortens_text(definition):
    larger = train_tokenizer([CODE], 900)
    merges = definition["model"]["merges"]
    assert larger["model"]["merges"][: len(merges)] == merges
    held_out = inspect.getsource(random)
    lengths = [
        len(tokenizers.Tokenizer.from_str(json.dumps(d)).encode(held_out).ids)
        for d in (definition, larger)
    ]
    assert lengths[1] < lengths[0] < len(held_out) / 1.5


def test_sentinels_in_the_text_leave_no_trace(definition):
    words = CODE.split(" ")
    with_sentinels = "<commit_before>".join(words)
    assert train_tokenizer([with_sentinels], 600) == definition
    nested = "<fim_<fim_prefix>prefix>" * 1000
    vocab = train_tokenizer([nested], 290)["model"]["vocab"]
    assert not any(
        "fim_prefix" in token for token in vocab if token not in STARCODER_SPECIAL_TOKENS
    )


@pytest.mark.parametrize("character", ["a", " ", "="])
def test_a_run_of_characters_is_learned_up_to_a_thousand(character):
    """Pairs of equal halves are merged until the longest piece of a run is one token."""
    definition = train_tokenizer([f"x\n{character * 4096}\ny"], 320)
    assert 500 < max(map(len, definition["model"]["vocab"])) <= 1000


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="need 275"):
        train_tokenizer([CODE], 274)


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(["", ""], 300)
