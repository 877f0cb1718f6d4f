import copy
import json
import pickle

import pytest
import tokenizers

from megatron.errors import DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.json_tokenizer import JsonTokenizer, add_special_tokens
from megatron.tokenizer.special_tokens import EOD, FIM_TOKENS, STARCODER_SPECIAL_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.tokenizer.conftest import CODE, hard_texts


def build(definition: dict, **kwargs) -> JsonTokenizer:
    return JsonTokenizer("test", definition, eod=EOD, **kwargs)


def spelled(specials) -> list[str]:
    """Texts that spell sentinels: alone, in a row, in code, nested, and almost."""
    texts = [*specials, "".join(specials)]
    texts += [f"x = '{token}'\n" for token in specials]
    texts += [f" {token} {token}\n{token}" for token in specials]
    texts += [token[:3] + token + token[3:] for token in specials]
    return texts + [token[:-1] for token in specials]


def assert_no_text_becomes_a_sentinel(tokenizer: Tokenizer) -> None:
    specials = set(tokenizer.special_tokens.values())
    texts = spelled(list(tokenizer.special_tokens)) + hard_texts(50)
    for text, ids in zip(texts, tokenizer.tokenize_batch(texts), strict=True):
        assert ids == tokenizer.tokenize(text)
        assert specials.isdisjoint(ids), text
        assert tokenizer.detokenize(ids) == text


def test_ids_equal_the_tokenizers_package_on_text_without_sentinels(definition):
    oracle = tokenizers.Tokenizer.from_str(json.dumps(definition))
    tokenizer = build(definition)
    texts = hard_texts()
    expected = [oracle.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenizer.tokenize_batch(texts) == expected
    assert [tokenizer.tokenize(text) for text in texts] == expected


def test_decoding_gives_every_text_back(definition):
    tokenizer = build(definition)
    for text in hard_texts():
        ids = tokenizer.tokenize(text)
        assert tokenizer.detokenize(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_text_that_spells_a_sentinel_stays_text(definition):
    oracle = tokenizers.Tokenizer.from_str(json.dumps(definition))
    assert oracle.encode(EOD).ids == [0]  # what a tokenizer.json does by itself
    assert_no_text_becomes_a_sentinel(build(definition))


def test_not_even_whole_words_or_merges_reach_a_sentinel(definition):
    """A vocabulary in which merges spell a sentinel, and words are looked up whole before merging."""
    for ignore_merges in (False, True):
        changed = copy.deepcopy(definition)
        changed["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        model = changed["model"]
        model["ignore_merges"] = ignore_merges
        parts = "<reponame"
        for end in range(2, len(parts) + 1):
            model["vocab"].setdefault(parts[:end], len(model["vocab"]))
        model["merges"] = [[parts[:end], parts[end]] for end in range(1, len(parts))]
        model["merges"].append(["<reponame", ">"])
        oracle = tokenizers.Tokenizer.from_str(json.dumps(changed))
        oracle.encode_special_tokens = True
        assert oracle.encode("<reponame>").ids == [18]  # the switch alone does not prevent it
        assert_no_text_becomes_a_sentinel(build(changed))


def test_sentinels_not_declared_special_are_kept_out_of_text_too(definition):
    changed = copy.deepcopy(definition)
    for token in changed["added_tokens"]:
        token["special"] = False
    tokenizer = build(changed)
    assert list(tokenizer.special_tokens) == list(STARCODER_SPECIAL_TOKENS)
    assert_no_text_becomes_a_sentinel(tokenizer)


def test_pickling_keeps_sentinels_out_of_text(definition):
    tokenizer = pickle.loads(pickle.dumps(build(definition)))
    assert tokenizer.eod == 0
    assert_no_text_becomes_a_sentinel(tokenizer)


def test_added_tokens_that_are_not_sentinels_are_found_in_text_with_their_ids(definition):
    changed = copy.deepcopy(definition)
    add_special_tokens(changed, ["<|last|>"])
    plain = {**changed["added_tokens"][-1], "content": "    return", "id": 601, "special": False}
    changed["added_tokens"].append(plain)
    oracle = tokenizers.Tokenizer.from_str(json.dumps(changed))
    tokenizer = build(changed)
    text = "def f():\n    return 1"
    assert tokenizer.tokenize(text) == oracle.encode(text).ids
    assert 601 in tokenizer.tokenize(text)
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text
    assert (tokenizer.special_tokens["<|last|>"], tokenizer.vocab_size) == (600, 602)


def test_nothing_is_added_to_or_cut_from_the_ids_of_a_text(definition):
    changed = copy.deepcopy(definition)
    oracle = tokenizers.Tokenizer.from_str(json.dumps(changed))
    oracle.enable_truncation(5)
    oracle.enable_padding(length=64)
    oracle.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{EOD} $A {EOD}", special_tokens=[(EOD, 0)]
    )
    changed = json.loads(oracle.to_str())
    changed["model"]["dropout"] = 0.5
    for text in (CODE[:500], "x"):
        assert build(changed).tokenize(text) == build(definition).tokenize(text)


def test_sentinels_have_no_bytes_and_are_spelled_when_decoded(definition):
    tokenizer = build(definition)
    assert [tokenizer.token_bytes(i) for i in range(19)] == [b""] * 19
    ids = [1, *tokenizer.tokenize("a"), 0]
    assert tokenizer.detokenize(ids) == f"<fim_prefix>a{EOD}"
    first_byte = next(i for i in range(19, 275) if tokenizer.token_bytes(i) == b"\xc3")
    assert tokenizer.detokenize([first_byte]) == "\ufffd"


def test_saving_and_opening_gives_the_same_tokenizer(definition, tokenizer_file, tmp_path):
    without_fim = copy.deepcopy(definition)
    without_fim["added_tokens"] = [t for t in definition["added_tokens"] if t["id"] in (0, 7)]
    for name in FIM_TOKENS:
        del without_fim["model"]["vocab"][name]
    tokenizer_file.write_text(json.dumps(without_fim))
    first = build_tokenizer(
        TokenizerConfig(
            tokenizer_type="TokenizerFromFileWithFIM", tokenizer_file=str(tokenizer_file)
        )
    )
    assert [first.special_tokens[name] for name in FIM_TOKENS] == [600, 601, 602, 603]
    (tmp_path / "run").mkdir()
    first.save(tmp_path / "run")
    second = build_tokenizer(TokenizerConfig(tokenizer_file=f"{tmp_path}/run/tokenizer.json"))
    assert second.fingerprint() == first.fingerprint()
    assert second.special_tokens == first.special_tokens
    assert second.tokenize(CODE) == first.tokenize(CODE)


def test_fingerprint_follows_what_decides_ids_and_nothing_else(definition):
    same = dict(definition, truncation={"max_length": 5})
    assert build(same).fingerprint() == build(definition).fingerprint()
    changes = [
        lambda d: d["model"]["merges"].pop(),
        lambda d: d.update(normalizer={"type": "NFC"}),
        lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0),
        lambda d: d["model"]["vocab"].update({"zzzz": 600}),
        lambda d: add_special_tokens(d, ["<extra>"]),
    ]
    for change in changes:
        changed = copy.deepcopy(definition)
        change(changed)
        assert build(changed).fingerprint() != build(definition).fingerprint()


def llama_definition() -> dict:
    """A vocabulary with bytes to fall back on and ▁ for a space, whose merges happen to spell <s>."""
    words = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    words += ["▁", "a", "b", "<", "s", ">", "ab", "<s"]
    added = [
        {"id": i, "content": words[i], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in range(3)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": ["a b", "< s", "<s >"],
        },
    }


def test_a_vocabulary_with_byte_fallback_loses_nothing(tmp_path):
    definition = llama_definition()
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = build_tokenizer(
        TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(tmp_path))
    )
    assert tokenizer.eod == 2
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"
    assert tokenizer.token_bytes(1) == b""
    oracle = tokenizers.Tokenizer.from_str(json.dumps(definition))
    for text in ["ab ba", "\u00e9\n a", "a\tb"]:
        ids = tokenizer.tokenize(text)
        assert ids == oracle.encode(text, add_special_tokens=False).ids
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert_no_text_becomes_a_sentinel(tokenizer)


def cut(text: str) -> str:
    return text[: len(text) // 2]


def changed_definition(change) -> str:
    definition = llama_definition()
    change(definition["model"])
    return json.dumps(definition)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        (cut(json.dumps(llama_definition())), "is not JSON"),
        ("[]", "holds list"),
        ('{"version": "1.0"}', "has no model"),
        ('{"model": {"type": "Unigram", "vocab": []}}', "Unigram model.*SentencePieceTokenizer"),
        (changed_definition(lambda model: model.update(byte_fallback=False)), "would be lost"),
        (
            changed_definition(lambda model: model["vocab"].pop("<0x41>")),
            "lacks 1 of the 256 bytes",
        ),
        (json.dumps(llama_definition()), "has no <.endoftext.>"),
    ],
)
def test_a_file_that_is_no_usable_tokenizer_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        build_tokenizer(TokenizerConfig(tokenizer_file=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["TokenizerFromFile", "HuggingFaceTokenizer"])
def test_a_definition_the_package_refuses_is_an_error_that_names_the_file(
    definition, tmp_path, kind
):
    changed = copy.deepcopy(definition)
    changed["model"]["merges"].append(["a", "not in the vocabulary"])
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed))
    config = TokenizerConfig(kind, tokenizer_file=str(path), tokenizer_model=str(tmp_path))
    with pytest.raises(DataError, match="refuses it") as caught:
        build_tokenizer(config)
    assert str(caught.value).startswith(f"{path}: ")
