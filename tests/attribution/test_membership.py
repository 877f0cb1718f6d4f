"""Any shared run of gram + window - 1 normalised bytes is found, wherever it stands and however it is laid out."""

import json
import random
import re

import numpy as np
import pytest

pytest.importorskip("megatron.attribution._fingerprints", reason="csrc/ is not compiled: make env")
from megatron.attribution import _fingerprints
from megatron.attribution.membership import MembershipIndex, ask
from megatron.errors import DataError
from tests.attribution.conftest import index, write

MASK = (1 << 64) - 1


def reference(text, gram, window):
    """The definition in csrc/fingerprints.cpp, anew: {place: hash} of the fingerprints of a text."""

    def mix(x):
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ x >> 33) * factor & MASK
        return x ^ x >> 33

    normalised = re.sub(rb"[ \t\n\v\f\r]+", b" ", text)
    hashes = []
    for i in range(len(normalised) - gram + 1):
        total = 0
        for byte in normalised[i : i + gram]:
            total = (total * 0x9E3779B97F4A7C15 + byte + 1) & MASK
        hashes.append(mix(total))
    chosen = {}
    for i in range(max(len(hashes) - window + 1, min(1, len(hashes)))):
        some = hashes[i : i + window]
        place = i + max(j for j, value in enumerate(some) if value == min(some))
        chosen[place] = hashes[place]
    return normalised, hashes, chosen


TEXTS = [
    b"",
    b"short",
    b"def f(x):\n\treturn x  # a  b\r\n" * 4,
    b"\n\n  x" + b"=" * 90 + b"\n",
    bytes(range(256)) * 2,
    b"ab" * 40,
]


@pytest.mark.parametrize(("gram", "window"), [(8, 1), (8, 5), (13, 16), (50, 50)])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_fingerprints_are_as_defined(text, gram, window, by_bytes):
    normalised, hashes, chosen = reference(text, gram, window)
    given, places = _fingerprints.normalise(text)
    assert given == normalised
    assert all(
        normalised[i] == text[place] or text[place] in b"\t\n\v\f\r"
        for i, place in enumerate(places)
    )
    keys, found = _fingerprints.grams(normalised, gram, window)
    assert keys.tolist() == hashes and sorted(set(found.tolist())) == sorted(chosen)
    spelling = _fingerprints.Spelling(
        [bytes([i]) for i in range(256)] + [b""], [False] * 256 + [True]
    )
    tokens = np.frombuffer(text + text, np.uint8).astype(np.uint16)
    ends = np.array([len(text), 2 * len(text)])
    built = spelling.fingerprints(tokens, ends, gram, window).tolist()
    values = [chosen[place] for place in sorted(chosen)]
    values = [value for i, value in enumerate(values) if i == 0 or values[i - 1] != value]
    assert built == values * 2  # each document by itself


@pytest.fixture(scope="module")
def corpus(source_texts, tokenizer, tmp_path_factory):
    """Four files in two token files, and two that are held out."""
    folder = tmp_path_factory.mktemp("membership")
    prefixes = [
        write(folder / name, texts, tokenizer, rows={"path": [f"{name}{i}.py" for i in range(2)]})
        for name, texts in (("a", source_texts[:2]), ("b", source_texts[2:4]))
    ]
    index(prefixes, tokenizer, "membership")
    return prefixes, source_texts[:4], source_texts[4]


def relaid(text, draw):
    """Other blanks where there are some."""
    return re.sub(
        r"\s+", lambda match: draw.choice([" ", "\n", "\t\t", "\r\n    ", match[0]]), text
    )


def test_every_planted_span_of_99_normalised_bytes_is_found(corpus):
    prefixes, texts, held_out = corpus
    indexes = [MembershipIndex(prefix) for prefix in prefixes]
    assert not ask(held_out[:3000].encode(), indexes).covered
    draw = random.Random(7)
    for number in range(500):
        text = draw.choice(texts)
        start = draw.randrange(len(text) - 400)
        stop = start + 99
        while len(re.sub(r"\s+", " ", text[start:stop])) < 99:
            stop += 1
        place = draw.randrange(2000)
        span = text[start:stop] if number % 2 else relaid(text[start:stop], draw)
        planted = (held_out[:place] + "§" + span + "§" + held_out[place : place + 500]).encode()
        answer = ask(planted, indexes)
        first = len((held_out[:place] + "§").encode())
        inside = [
            one
            for one in answer.spans
            if first <= one.start < one.stop <= first + len(span.encode())
        ]
        assert inside and inside[0].stop - inside[0].start >= 50, (number, span)


def test_a_run_that_is_shorter_than_a_gram_is_not_found(corpus):
    prefixes, texts, _ = corpus
    indexes = [MembershipIndex(prefix) for prefix in prefixes]
    assert (
        ask("|".join(texts[0][i : i + 49] for i in range(0, 4900, 49)).encode(), indexes).spans
        == ()
    )


def test_answer_names_the_token_files_and_what_is_covered(corpus):
    prefixes, texts, held_out = corpus
    both = (texts[0][:1000] + "\n" + held_out[:500] + texts[3][2000:3000]).encode()
    answer = ask(both, [MembershipIndex(prefix) for prefix in prefixes])
    assert [span.prefixes for span in answer.spans] == [(prefixes[0],), (prefixes[1],)]
    # At either end less than a window of the run may go unseen.
    assert 2000 - 4 * 60 < answer.covered <= 2000
    assert 0 < answer.expected_false < 1e-3


def test_bytes_of_the_file_do_not_depend_on_threads_and_memory(
    corpus, tokenizer, tmp_path, source_texts
):
    prefix = write(tmp_path / "c", [text[:9000] for text in source_texts], tokenizer)
    files = []
    for options in ({}, {"threads": 3}, {"memory": 1.2e-6}):
        index([prefix], tokenizer, "membership", again=True, **options)
        files.append((tmp_path / "c.membership").read_bytes())
    assert files[0] == files[1] == files[2]


def test_what_is_opted_out_is_withheld_at_once_and_what_others_have_too_is_not(
    source_texts, tokenizer, by_bytes, tmp_path
):
    shared = source_texts[0][:2000]
    rows = {"repo": ["octocat/gone", "octocat/stays"]}
    texts = [shared + source_texts[1][:3000], source_texts[2][:3000]]
    prefix = write(tmp_path / "a", texts, tokenizer, rows=rows)
    list_file = tmp_path / "out.jsonl"
    list_file.write_text(json.dumps({"repo": "octocat/gone"}))
    files, spelling = index([prefix], tokenizer, "membership", opt_out=[str(list_file)])
    indexes = [MembershipIndex(prefix)]
    for text, is_withheld in (
        (source_texts[1][500:1500], True),
        (source_texts[2][500:1500], False),
    ):
        assert ask(text.encode(), indexes).covered > 800
        answer = ask(text.encode(), indexes, files, spelling)
        assert {span.withheld for span in answer.spans} == {is_withheld}
        assert (answer.covered == 0) == is_withheld
        with pytest.raises(DataError, match="of another tokenizer"):
            ask(text.encode(), indexes, files, type(spelling)(by_bytes))


def test_filter_answers_without_its_token_file_and_is_refused_beside_another(
    corpus, tokenizer, tmp_path, source_texts
):
    prefix = write(tmp_path / "a", source_texts[:1], tokenizer)
    index([prefix], tokenizer, "membership")
    for name in ("a.bin", "a.idx", "a.sha256"):
        (tmp_path / name).rename(tmp_path / f"away.{name}")
    assert ask(source_texts[0][:500].encode(), [MembershipIndex(prefix)]).covered
    write(tmp_path / "a", source_texts[1:2], tokenizer)
    with pytest.raises(DataError, match=r"a\.membership is stale: .* build --kinds membership"):
        MembershipIndex(prefix)
