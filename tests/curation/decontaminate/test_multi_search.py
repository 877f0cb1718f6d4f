"""What the searches of C++ find is what a plain loop finds, and no text takes them much longer than another."""

import random
import re
import time

import pytest

pytest.importorskip("megatron.curation._multi_search", reason="csrc/ is not compiled: make env")

from megatron.curation._multi_search import GramSearch, StringSearch, normalise

PARTS = [
    *(b'"', b"'", b'"""', b"'''", b"\\", b"#", b"//", b"/*", b"*/", b"/", b"\n", b"\r\n", b" ", b"\t", b"("),
    *(b"word", b"Def", b"if", b"x" * 70, b" " * 66, "É".encode(), "é".encode(), b"12ab", b"=", b"return", b"\x85", b"_"),
]  # fmt: skip
STRING = rb"\"\"\"(?:\\.|(?!\"\"\")[^\\])*\"\"\"|'''(?:\\.|(?!''')[^\\])*'''|\"(?!\"\")(?:\\.|[^\"\\\n])*\"|'(?!'')(?:\\.|[^'\\\n])*'"
COMMENT = {True: rb"#[^\n]*", False: rb"//[^\n]*|/\*.*?(?:\*/|\Z)"}
WORD = rb"[A-Za-z0-9_\x80-\xff]+"
KEYWORDS = frozenset(
    b"""and as assert break class continue def del elif else except finally for from global if import in is lambda none
    nonlocal not or pass raise return true false try while with yield""".split()
)


def texts(seed, without=rb"(?!)"):
    """Texts of parts that mean something, odd in length, so that they end anywhere in a block of 64 bytes."""
    source = random.Random(seed)
    parts = [part for part in PARTS if not re.search(without, part)]
    for _ in range(400):
        yield b"".join(source.choices(parts, k=source.randrange(120)))


def shapes(text):
    """Python's tokens without strings and comments, all names alike."""
    for match in re.finditer(STRING + rb"|#[^\n]*|" + WORD + rb"|[^\s]", text, re.S):
        token = match[0].lower()
        if token[:1] in (b"#", b'"', b"'"):
            continue
        is_name = re.fullmatch(WORD, token) and not token[:1].isdigit() and token not in KEYWORDS
        yield b"name" if is_name else token, match.start(), match.end()


def words(text):
    return [(match[0].lower(), match.start(), match.end()) for match in re.finditer(WORD, text)]


@pytest.mark.parametrize("alphabet", [b"a", b"abAB", b"abc@`", bytes(range(256))], ids=len)
def test_strings_of_every_size_are_found_in_any_case_at_their_first_place_in_the_order_of_the_text(
    alphabet,
):
    source = random.Random(len(alphabet))
    for _ in range(300):
        sizes = source.choices([1, 2, 6, 7, 8, 9, 10, 11, 12, 15, 16, 21, 22, 23, 24, 40], k=8)
        patterns = list({bytes(source.choices(alphabet, k=size)) for size in sizes})
        parts = [bytes(source.choices(alphabet, k=source.randrange(60))) for _ in range(4)]
        text = b"".join(part + source.choice(patterns) for part in parts)
        found = StringSearch(patterns).find(text)
        small = [one.lower() for one in patterns]
        expected = sorted(
            (text.lower().find(s), n) for n, s in enumerate(small) if s in text.lower()
        )
        assert [(begin, n) for n, begin, _ in found] == expected
        assert all(text[begin:end].lower() == small[n] for n, begin, end in found)


@pytest.mark.parametrize("hash", [True, False])
def test_normalising_leaves_out_white_space_and_comments_but_those_in_strings(hash):
    either = re.compile(STRING + rb"|(" + COMMENT[hash] + rb")", re.S)
    for text in texts(1):
        shown = either.sub(lambda match: b"" if match[1] else match[0], text)
        expected = b"".join(shown.split()).lower()
        assert normalise(text, hash, not hash) == expected, text


def test_what_is_found_in_the_normalised_text_is_given_where_it_stands_in_the_text():
    source, found = random.Random(3), 0
    for text in texts(2, without=rb"[\"'\\]"):  # so that a part of it means the same alone
        shown = normalise(text, True, False)
        at = source.randrange(len(shown) + 1)
        pattern = shown[at : at + 30]
        if not pattern or shown.find(pattern) < at:
            continue
        [(_, begin, end)] = StringSearch([pattern]).find_normalised(text, True, False)
        assert normalise(text[:begin], True, False) == shown[:at]
        assert normalise(text[begin:end], True, False) == pattern
        found += 1
    assert found > 100


@pytest.mark.parametrize(("shape", "tokens"), [(False, words), (True, shapes)])
def test_runs_of_tokens_are_counted_as_a_plain_loop_counts_them(shape, tokens):
    source = random.Random(4)
    hits = 0
    for text in texts(5):
        begin = source.randrange(len(text) + 1)
        pattern = text[begin : begin + source.randrange(200)]
        n = source.choice([1, 2, 3])
        there, wanted = list(tokens(text)), [token for token, _, _ in tokens(pattern)]
        runs = {tuple(wanted[i : i + n]) for i in range(len(wanted) - n + 1)}
        places = [i for i in range(len(there) - n + 1) if tuple(t for t, _, _ in there[i : i + n]) in runs]  # fmt: skip
        most = max(
            (len({tuple(t for t, _, _ in there[i : i + n]) for i in places if first <= i <= first + 2 * len(wanted)}) for first in places),
            default=0,
        )  # fmt: skip
        found = GramSearch(n, [pattern], shape).find(text)
        assert [(matched, total) for _, matched, total, _, _ in found] == [(most, len(runs))] * bool(most)  # fmt: skip
        for _, matched, total, begin, end in found:
            assert {begin, end} <= {place for token in there for place in token[1:]}
            assert GramSearch(n, [pattern], shape).find(text, matched / total) == found
            assert GramSearch(n, [pattern], shape).find(text, matched / total + 0.01) == []
            hits += 1
    assert hits > 100


@pytest.mark.parametrize("part", [b'\\"', b'\\"""', b"'\\", b'"""\\', b"/*", b"'\n", b'"""#'])
def test_a_megabyte_of_quotes_that_are_never_closed_is_read_once(part):
    text = b"x = " + part * (1_000_000 // len(part))
    start = time.process_time()
    normalise(text, True, True)
    GramSearch(5, [b"a b c d e f g"], True).find(text)
    assert time.process_time() - start < 10  # read again from each quote, it would take minutes
