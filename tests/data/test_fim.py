"""Fill in the middle loses no byte, cuts no structure, and encodes each part as the tokenizer would by itself."""

import numpy as np
import pytest
import tokenizers

from megatron.data.fim import FillInTheMiddle
from megatron.data.permutation import keyed_word
from megatron.errors import ConfigError
from megatron.options import TokenizerConfig
from megatron.tokenizer.tokenizer import build_tokenizer

EOD, PREFIX, MIDDLE, SUFFIX, PAD, FILENAME, REPONAME = 0, 1, 2, 3, 4, 5, 18

UGLY_TEXTS = [
    "x",
    "a\r\nb\r\n\r\n\tc\td\r",
    "naïve café ﬁ e\u0301 — “quotes”",
    "日本語のコメント、漢字と仮名。" * 3,
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji 🙂🙂",
    "<fim_prefix>a<fim_suffix>b<fim_middle><fim_pad><|endoftext|>",
    "    \n\n\n        \t\t\n  ",
    "1234567890 0x7f 3.14159",
    "\x00\x01\x7f",
    "'s 't don't I'll we've",
]


def split(ids, separator):
    """Give the lists between separators; a list without one is the only one."""
    parts = [[]]
    for token in ids:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def parse(ids):
    """Give (order, prefix, middle, suffix) of a transformed document; in SPM order prefix and middle are one."""
    sentinels = [token for token in ids if token in (PREFIX, MIDDLE, SUFFIX)]
    assert sentinels == [PREFIX, SUFFIX, MIDDLE], sentinels
    assert ids[0] == PREFIX
    suffix_at, middle_at = ids.index(SUFFIX), ids.index(MIDDLE)
    head, suffix, tail = ids[1:suffix_at], ids[suffix_at + 1 : middle_at], ids[middle_at + 1 :]
    if suffix_at == 1:
        return "SPM or empty", [], tail, suffix
    return "PSM", head, tail, suffix


def undo(ids):
    """Give the ids of a document, transformed or not, in the order of the text."""
    if not {PREFIX, MIDDLE, SUFFIX} & set(ids):
        return ids
    _, prefix, middle, suffix = parse(ids)
    return prefix + middle + suffix


def to_bytes(tokenizer, ids):
    """Spell ids as bytes, sentinels as bytes that no text holds."""
    names = {number: b"\xff" + name.encode() for name, number in tokenizer.special_tokens.items()}
    return b"".join(names.get(token) or tokenizer.token_bytes(token) for token in ids)


def pack(tokenizer, texts):
    ids = []
    for text in texts:
        ids += [*tokenizer.tokenize(text), EOD]
    return np.array(ids, np.int64)


@pytest.fixture(scope="module")
def corpus(tokenizer, source_texts):
    """Documents of very different size and script, packed."""
    texts = []
    for number, text in enumerate(source_texts):
        texts += [text[:15_000], *UGLY_TEXTS[number::2], text[15_000:15_700], ""]
    return pack(tokenizer, texts * 2)


def check_window(tokenizer, window, result, num_tokens):
    """The result has the window's length, undoes to its bytes, and holds whole structures only."""
    assert len(result) == len(window)
    assert all(result[num_tokens:] == PAD) and PAD not in result[:num_tokens]
    documents = split(result[:num_tokens].tolist(), EOD)
    undone = []
    for number, document in enumerate(documents):
        undone += [EOD] * (number > 0) + undo(document)
    given = to_bytes(tokenizer, window.tolist())
    kept = to_bytes(tokenizer, undone)
    assert given.startswith(kept)
    return documents


@pytest.mark.parametrize("length", [33, 129, 1025, 4097])
def test_undoing_gives_the_bytes_back_and_no_structure_is_cut(tokenizer, corpus, length):
    fim = FillInTheMiddle(tokenizer, rate=0.9)
    for number in range(40_000 // length):
        start = keyed_word("start", number) % (len(corpus) - length)
        window = corpus[start : start + length]
        check_window(tokenizer, window, *fim(window, keyed_word("draws", number)))


def test_undoing_gives_the_bytes_back_at_every_cut_through_characters(tokenizer):
    ids = pack(tokenizer, ["ab日本語🙂é\r\n", "漢字🙂", "🙂"])
    fim = FillInTheMiddle(tokenizer, rate=1.0)
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            for key in range(3):
                window = ids[start:stop]
                check_window(tokenizer, window, *fim(window, keyed_word(key)))


@pytest.mark.parametrize("text", ["é1", "日1本", "🙂12🙂", "ab🙂cd日"])
def test_document_cut_inside_characters_at_its_ends_is_transformed_all_the_same(tokenizer, text):
    pieces = [bytes([byte]) for byte in text.encode()]
    token_of = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    ids = [token_of[piece] for piece in pieces]  # one id a byte
    fim = FillInTheMiddle(tokenizer, rate=1.0)
    for start in range(4):
        for stop in range(max(start + 1, len(ids) - 3), len(ids) + 1):
            has_character = bool(b"".join(pieces[start:stop]).decode(errors="ignore"))
            window = np.array([*ids[start:stop], EOD, *[EOD] * 40], np.int64)
            for key in range(5):
                result, _ = fim(window, keyed_word(key))
                document = split(result.tolist(), EOD)[0]
                assert to_bytes(tokenizer, undo(document)) == b"".join(pieces[start:stop])
                assert (PREFIX in document) == has_character


def test_parts_are_encoded_as_the_package_encodes_them(tokenizer, tokenizer_file, corpus):
    package = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    package.encode_special_tokens = True
    fim = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=0.0)
    num_parts = 0
    for number in range(60):
        start = keyed_word("start", number) % (len(corpus) - 600)
        result, num_tokens = fim(corpus[start : start + 600], keyed_word("draws", number))
        for document in split(result[:num_tokens].tolist(), EOD):
            if PREFIX not in document:
                continue
            _, *parts = parse(document)
            for part in parts:
                try:
                    text = to_bytes(tokenizer, part).decode()
                except UnicodeDecodeError:
                    continue  # the end of the window cut a character
                assert package.encode(text).ids == part
                num_parts += 1
    assert num_parts > 300


def test_structures_are_those_of_the_paper(tokenizer):
    ids = tokenizer.tokenize("def add(a, b):\n    return a + b\n")
    window = np.array([*ids, EOD, *[EOD] * 40], np.int64)
    psm = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=0.0)
    spm = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=1.0)
    for key in range(20):
        _, prefix, middle, suffix = parse(split(psm(window, key)[0].tolist(), EOD)[0])
        expected = [PREFIX, SUFFIX, *suffix, MIDDLE, *prefix, *middle]
        assert split(spm(window, key)[0].tolist(), EOD)[0] == expected
        text = tokenizer.detokenize(prefix) + tokenizer.detokenize(middle)
        assert text + tokenizer.detokenize(suffix) == tokenizer.detokenize(ids)


def test_document_that_fits_to_the_last_id_loses_nothing(tokenizer):
    ids = tokenizer.tokenize("def add(a, b):\n    return a + b\n")
    fim = FillInTheMiddle(tokenizer, rate=1.0)
    for key in range(40):
        window = np.array([*ids, *[EOD] * 40], np.int64)
        whole = split(fim(window, key)[0].tolist(), EOD)[0]
        result, num_tokens = fim(window[: len(whole)], key)
        assert (result.tolist(), num_tokens) == (whole, len(whole))


def chi_square_deviation(counts, expected):
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    return (((counts - expected) ** 2 / expected).sum() - len(counts) + 1) / (
        2 * len(counts)
    ) ** 0.5


def test_rates_hold_for_documents_orders_and_the_last_document_of_a_sample(tokenizer):
    ids = pack(tokenizer, ["value = 12\n"] * 3 + ["def f(x):\n    return x\n" * 20])
    window = ids[:80]  # the last document is cut by the end of the sample
    fim = FillInTheMiddle(tokenizer, rate=0.4, spm_rate=0.3)
    num_keys, kinds = 3000, np.zeros((4, 3))
    for key in range(num_keys):
        result, num_tokens = fim(window, keyed_word("sample", key))
        documents = split(result[:num_tokens].tolist(), EOD)
        assert len(documents) == 4
        for place, document in enumerate(documents):
            # An empty prefix makes PSM look like SPM: count by what the draws say, not by the look.
            kind = 0 if PREFIX not in document else 1 if document[1] != SUFFIX else 2
            kinds[place, kind] += 1
    places = len("value = 12\n") + 1
    empty = 1 / places**2  # both cuts at 0
    looks_like_spm = 0.3 + 0.7 * (2 / places - empty)  # the smaller cut is 0
    for place in range(3):
        expected = num_keys * np.array([0.6, 0.4 * (1 - looks_like_spm), 0.4 * looks_like_spm])
        assert abs(chi_square_deviation(kinds[place], expected)) < 5
    assert (
        abs(
            chi_square_deviation(
                kinds[3, [0, 1]] + [0, kinds[3, 2]], num_keys * np.array([0.6, 0.4])
            )
        )
        < 5
    )


def test_cuts_are_uniform_over_characters(tokenizer):
    text = "é🙂ab\r\n日c"
    window = np.array([*pack(tokenizer, [text]), *[EOD] * 30], np.int64)
    fim = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=0.0)
    places, num_keys = len(text) + 1, 4000
    counts = np.zeros((places, places))
    for key in range(num_keys):
        result, _ = fim(window, keyed_word("sample", key))
        _, prefix, middle, _ = parse(split(result.tolist(), EOD)[0])
        first = len(to_bytes(tokenizer, prefix).decode())
        counts[first, first + len(to_bytes(tokenizer, middle).decode())] += 1
    pairs = np.triu_indices(places)
    likelihood = np.where(pairs[0] == pairs[1], 1, 2) / places**2
    assert counts.sum() == counts[pairs].sum() == num_keys
    assert abs(chi_square_deviation(counts[pairs], num_keys * likelihood)) < 5


def test_documents_of_a_sample_are_drawn_independently(tokenizer):
    window = pack(tokenizer, ["some text"] * 40)
    fim = FillInTheMiddle(tokenizer, rate=0.5)
    chosen = np.zeros((400, 8))
    for key in range(400):
        documents = split(fim(window, keyed_word("sample", key))[0].tolist(), EOD)
        chosen[key] = [PREFIX in document for document in documents[:8]]
    correlation = np.corrcoef(chosen.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 400**0.5


def test_result_depends_on_key_and_window_alone(tokenizer, corpus):
    first, second = (FillInTheMiddle(tokenizer, rate=0.5) for _ in range(2))
    windows = [corpus[300 * number : 300 * number + 301] for number in range(20)]
    forward = [first(window, key)[0] for key, window in enumerate(windows)]
    backward = [second(windows[key], key)[0] for key in reversed(range(20))]
    for one, other in zip(forward, reversed(backward), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(first(windows[0], 0)[0], first(windows[0], 1)[0])


def test_sample_of_end_of_document_tokens_is_left_alone(tokenizer):
    window = np.full(50, EOD, np.int64)
    result, num_tokens = FillInTheMiddle(tokenizer, rate=1.0)(window, 7)
    assert np.array_equal(result, window) and num_tokens == 50


def test_empty_documents_keep_their_end(tokenizer):
    ids = tokenizer.tokenize("word")
    window = np.array([EOD, EOD, *ids, EOD, EOD, *[EOD] * 20], np.int64)
    result, _ = FillInTheMiddle(tokenizer, rate=1.0)(window, 7)
    documents = split(result.tolist(), EOD)
    assert [bool(document) for document in documents[:5]] == [False, False, True, False, False]


def test_sample_without_end_of_document_is_one_document(tokenizer, source_texts):
    window = np.array(tokenizer.tokenize(source_texts[0])[:500], np.int64)
    result, num_tokens = FillInTheMiddle(tokenizer, rate=1.0)(window, 3)
    (document,) = check_window(tokenizer, window, result, num_tokens)
    parse(document)
    assert num_tokens >= 490  # the text gave way to three sentinels, not more


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
def test_windows_too_short_for_a_structure_stay_text(tokenizer, length):
    window = np.array(tokenizer.tokenize("import os, sys, re, json, math")[:length], np.int64)
    for key in range(30):
        result, num_tokens = FillInTheMiddle(tokenizer, rate=1.0)(window, keyed_word(key))
        check_window(tokenizer, window, result, num_tokens)
        assert num_tokens == length or PREFIX in result


def test_padding_is_rare(tokenizer, corpus):
    fim = FillInTheMiddle(tokenizer, rate=0.5)
    num_padding = 0
    for number in range(100):
        start = keyed_word("start", number) % (len(corpus) - 513)
        _, num_tokens = fim(corpus[start : start + 513], keyed_word("draws", number))
        num_padding += 513 - num_tokens
    assert num_padding / (100 * 513) < 0.003


def test_sentinels_in_text_stay_text(tokenizer):
    text = "<fim_prefix>a<fim_suffix>b<fim_middle>c<|endoftext|>" * 3
    window = np.array([*pack(tokenizer, [text]), *[EOD] * 40], np.int64)
    for key in range(50):
        result, _ = FillInTheMiddle(tokenizer, rate=1.0)(window, keyed_word(key))
        document = split(result.tolist(), EOD)[0]
        assert to_bytes(tokenizer, undo(document)).decode() == text


def test_sentinels_of_the_corpus_are_kept_whole(tokenizer):
    code = tokenizer.tokenize("import os\n")
    ids = [REPONAME, *tokenizer.tokenize("me/it"), FILENAME, *tokenizer.tokenize("é.py"), *code]
    window = np.array([*ids, EOD, *[EOD] * 20], np.int64)
    given = to_bytes(tokenizer, ids)
    places = set()
    for key in range(200):
        result, _ = FillInTheMiddle(tokenizer, rate=1.0, spm_rate=0.0)(window, keyed_word(key))
        _, prefix, middle, suffix = parse(split(result.tolist(), EOD)[0])
        assert to_bytes(tokenizer, prefix + middle + suffix) == given
        places.add(FILENAME in prefix)
    assert places == {True, False}


def test_ids_that_are_not_text_are_left_alone(tokenizer):
    continuation = tokenizer.tokenize("é")[-1]
    byte = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"\x80")
    ids = [*tokenizer.tokenize("ab"), byte, byte, *tokenizer.tokenize("cd"), continuation]
    window = np.array([*ids, EOD, *[EOD] * 20], np.int64)
    result, _ = FillInTheMiddle(tokenizer, rate=1.0)(window, 1)
    assert np.array_equal(result, window)


def repository(tokenizer):
    files = ["def a():\n    pass\n", "", "b = 'é'\n", "import c\n"]
    ids = [REPONAME, *tokenizer.tokenize("me/it")]
    for file in files:
        ids += [FILENAME, *tokenizer.tokenize(file)]
    return ids


def test_repository_is_permuted_file_by_file(tokenizer):
    ids = repository(tokenizer)
    window = np.array([*ids, EOD, *[EOD] * 40], np.int64)
    fim = FillInTheMiddle(
        tokenizer, rate=0.5, split_token="<filename>", fragment_rate=0.5, spm_rate=0.0
    )
    num_keys, transformed, together = 2000, np.zeros(5), 0
    for key in range(num_keys):
        result, _ = fim(window, keyed_word("sample", key))
        fragments = split(split(result.tolist(), EOD)[0], FILENAME)
        assert len(fragments) == 5 and fragments[2] == []
        undone = [undo(fragment) for fragment in fragments]
        given = split(ids, FILENAME)
        for one, other in zip(undone, given, strict=True):
            assert to_bytes(tokenizer, one) == to_bytes(tokenizer, other)
        is_transformed = [PREFIX in fragment for fragment in fragments]
        transformed += is_transformed
        together += is_transformed[1] and is_transformed[3]
    # A file needs its repository's draw and its own: 1/4; two files of one share the first: 1/8.
    sigma = (num_keys * 0.25 * 0.75) ** 0.5
    assert np.all(np.abs(transformed[[0, 1, 3, 4]] - num_keys / 4) < 5 * sigma)
    assert abs(together - num_keys / 8) < 5 * sigma


def test_repository_keeps_its_end_and_what_follows_it(tokenizer):
    code = tokenizer.tokenize("import re\n")
    fim = FillInTheMiddle(tokenizer, rate=1.0, split_token="<filename>", fragment_rate=0.5)
    for ids in (repository(tokenizer), [*repository(tokenizer), FILENAME], [FILENAME, FILENAME]):
        window = np.array([*ids, EOD, *code, EOD, *[EOD] * 60], np.int64)
        for key in range(20):
            documents = split(fim(window, keyed_word(key))[0].tolist(), EOD)
            assert documents[0].count(FILENAME) == ids.count(FILENAME)
            assert to_bytes(tokenizer, undo(documents[1])) == b"import re\n"


def test_document_without_the_split_token_is_permuted_as_a_whole(tokenizer):
    window = np.array([*tokenizer.tokenize("import os\n"), *[EOD] * 20], np.int64)
    plain = FillInTheMiddle(tokenizer, rate=0.5)
    by_file = FillInTheMiddle(tokenizer, rate=0.5, split_token="<filename>", fragment_rate=0.0)
    for key in range(20):
        assert np.array_equal(plain(window, key)[0], by_file(window, key)[0])


def test_tokenizer_without_the_sentinels_is_refused():
    numbers = build_tokenizer(TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=100))
    with pytest.raises(ConfigError, match=r"NullTokenizer has no <fim_prefix> .*--fim-rate"):
        FillInTheMiddle(numbers, rate=0.5)


def test_unknown_split_token_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="--fim-split-sample <file> is not a special token"):
        FillInTheMiddle(tokenizer, rate=0.5, split_token="<file>")


def test_tokenizer_that_changes_text_is_refused(tokenizer_file, tmp_path):
    changed = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    changed.normalizer = tokenizers.normalizers.NFKC()
    path = tmp_path / "tokenizer.json"
    changed.save(str(path))
    with pytest.raises(ConfigError, match="keeps every byte"):
        FillInTheMiddle(build_tokenizer(TokenizerConfig(tokenizer_file=str(path))), rate=0.5)


def test_a_tokenizer_without_the_fast_encoder_gives_the_same_samples(tokenizer_file, corpus):
    fast, slow = (
        build_tokenizer(TokenizerConfig(tokenizer_file=str(tokenizer_file))) for _ in "ab"
    )
    slow._encoder = None  # as for a definition that csrc/ does not serve
    one, other = (FillInTheMiddle(made, rate=0.9) for made in (fast, slow))
    for key in range(30):
        window = corpus[700 * key : 700 * key + 701]
        (ids, num_tokens), (ids_of_slow, num_tokens_of_slow) = one(window, key), other(window, key)
        assert np.array_equal(ids, ids_of_slow) and num_tokens == num_tokens_of_slow
