import json

import pytest
import sentencepiece
import tokenizers

from megatron.errors import ConfigError, DataError
from megatron.options import TokenizerConfig
from megatron.tokenizer.special_tokens import EOD, FIM_TOKENS
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.tokenizer.conftest import CODE, hard_texts


@pytest.fixture(scope="session")
def gpt2_files(tmp_path_factory):
    """vocab.json and merges.txt as GPT-2 has them: the end of text is the last id."""
    folder = tmp_path_factory.mktemp("gpt2")
    oracle = tokenizers.ByteLevelBPETokenizer()
    oracle.train_from_iterator([CODE], vocab_size=500, special_tokens=[])
    vocab = json.loads(oracle.to_str())["model"]["vocab"]
    oracle.save_model(str(folder))
    (folder / "vocab.json").write_text(json.dumps(vocab | {EOD: len(vocab)}))
    return folder / "vocab.json", folder / "merges.txt"


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text").write_text(CODE)

    def train(name, **options):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(folder / name),
            vocab_size=600,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            minloglevel=2,
            **options,
        )
        return folder / f"{name}.model"

    return train


def test_gpt2_files_give_the_ids_of_the_tokenizers_package(gpt2_files):
    vocab, merges = gpt2_files
    oracle = tokenizers.ByteLevelBPETokenizer(str(vocab), str(merges), add_prefix_space=False)
    tokenizer = build_tokenizer(
        TokenizerConfig(
            tokenizer_type="GPT2BPETokenizer", vocab_file=str(vocab), merge_file=str(merges)
        )
    )
    texts = hard_texts()
    assert tokenizer.tokenize_batch(texts) == [oracle.encode(text).ids for text in texts]
    assert (tokenizer.eod, tokenizer.vocab_size) == (500, 501)
    assert tokenizer.detokenize(tokenizer.tokenize(f"a{EOD}b")) == f"a{EOD}b"
    assert tokenizer.eod not in tokenizer.tokenize(f"a{EOD}b")


def test_gpt2_with_fim_appends_its_sentinels(gpt2_files, tmp_path):
    vocab, merges = map(str, gpt2_files)
    config = TokenizerConfig(
        tokenizer_type="GPT2BPETokenizerWithFIM", vocab_file=vocab, merge_file=merges
    )
    tokenizer = build_tokenizer(config)
    assert [tokenizer.special_tokens[name] for name in FIM_TOKENS] == [501, 502, 503, 504]
    assert tokenizer.vocab_size == 505
    tokenizer.save(tmp_path)  # as a tokenizer.json
    saved = build_tokenizer(TokenizerConfig(tokenizer_file=str(tmp_path / "tokenizer.json")))
    assert saved.tokenize(CODE) == tokenizer.tokenize(CODE)
    assert saved.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("eos", [EOD, {"content": EOD}, None])
def test_a_hugging_face_folder_needs_tokenizer_json_only(tokenizer_file, eos, tmp_path):
    folder = tokenizer_file.parent
    if eos is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    config = TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder))
    tokenizer = build_tokenizer(config)
    from_file = build_tokenizer(TokenizerConfig(tokenizer_file=str(tokenizer_file)))
    assert tokenizer.eod == 0
    assert tokenizer.tokenize(CODE) == from_file.tokenize(CODE)
    assert tokenizer.fingerprint() == from_file.fingerprint()
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run")
    assert (tmp_path / "run/tokenizer_config.json").exists() == (eos is not None)


def test_sentencepiece_ids_are_those_of_its_library(sentencepiece_model, tmp_path):
    path = sentencepiece_model("plain", control_symbols=list(FIM_TOKENS))
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = build_tokenizer(
        TokenizerConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(path))
    )
    assert (tokenizer.eod, tokenizer.vocab_size) == (oracle.eos_id(), 600)
    texts = [*hard_texts(100), "</s>", f"x = '{FIM_TOKENS[0]}'", "".join(FIM_TOKENS)]
    for text, ids in zip(texts, tokenizer.tokenize_batch(texts), strict=True):
        assert ids == oracle.encode(text) == tokenizer.tokenize(text)
        assert set(tokenizer.special_tokens.values()).isdisjoint(ids)
        if "\0" not in text:  # the library itself ends there
            assert tokenizer.detokenize(ids) == text
            assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    fim = [tokenizer.special_tokens[name] for name in FIM_TOKENS]
    ids = [fim[0], *tokenizer.tokenize("a b"), tokenizer.eod]
    assert tokenizer.detokenize(ids) == "<fim_prefix>a b</s>"
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == path.read_bytes()


def test_sentencepiece_models_that_cannot_serve_are_refused(sentencepiece_model, tmp_path):
    def build(path):
        config = TokenizerConfig(tokenizer_type="SentencePieceTokenizer", tokenizer_model=str(path))
        return build_tokenizer(config)

    with pytest.raises(DataError, match="--control_symbols"):
        build(sentencepiece_model("user", user_defined_symbols=["<fim_prefix>"]))
    with pytest.raises(DataError, match="no end-of-sentence id"):
        build(sentencepiece_model("endless", eos_id=-1))
    (tmp_path / "cut.model").write_bytes(sentencepiece_model("whole").read_bytes()[:5000])
    with pytest.raises(DataError, match="not a SentencePiece model"):
        build(tmp_path / "cut.model")
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path / "missing.model")


def test_null_tokenizer_reads_numbers_and_ends_documents_with_one_id_more():
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=100))
    assert (tokenizer.eod, tokenizer.vocab_size) == (100, 101)
    assert tokenizer.tokenize("3 0 99") == [3, 0, 99]
    assert tokenizer.detokenize([3, 0, 100]) == f"3 0 {EOD}"
    for text in ("3 x", "100", "-1"):
        with pytest.raises(DataError, match="NullTokenizer"):
            tokenizer.tokenize(text)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("TokenizerFromFile", "--tokenizer-file"),
        ("HuggingFaceTokenizer", "--tokenizer-model"),
        ("GPT2BPETokenizer", "--vocab-file"),
        ("SentencePieceTokenizer", "--tokenizer-model"),
        ("NullTokenizer", "--vocab-size"),
    ],
)
def test_a_missing_flag_is_named(kind, flag):
    with pytest.raises(ConfigError, match=f"{kind} needs {flag}"):
        build_tokenizer(TokenizerConfig(tokenizer_type=kind))


def test_missing_and_unusable_files_are_named(gpt2_files, tmp_path):
    vocab, merges = map(str, gpt2_files)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    cases = [
        ({"tokenizer_file": f"{tmp_path}/x.json"}, "x.json cannot be read: No such file"),
        ({"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "org/name"}, "not a folder"),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path)},
            "has no tokenizer.json",
        ),
        ({"vocab_file": f"{tmp_path}/vocab.json", "merge_file": merges}, "vocab.json has no"),
        ({"vocab_file": vocab, "merge_file": f"{tmp_path}/merges.txt"}, "is not a merges.txt"),
        ({"vocab_file": vocab, "merge_file": f"{tmp_path}/none.txt"}, "cannot be read"),
    ]
    for fields, message in cases:
        kind = {"tokenizer_type": "GPT2BPETokenizer"} if "vocab_file" in fields else {}
        with pytest.raises(DataError, match=message):
            build_tokenizer(TokenizerConfig(**kind, **fields))


def test_a_folder_whose_end_token_is_unknown_is_refused(tokenizer_file):
    folder = tokenizer_file.parent
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(DataError, match="no '<end>' token"):
        build_tokenizer(
            TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folder))
        )
