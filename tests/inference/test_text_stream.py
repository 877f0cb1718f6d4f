"""Text that grows: characters and stop texts across tokens, and nothing given out that is taken back."""

import random

import pytest

from megatron.inference.text_stream import TextStream


def grow(pieces, stops=()):
    """The text as it came, and whether it was stopped."""
    stream, given = TextStream(stops), []
    for piece in pieces:
        if stream.add(piece):
            return [*given, stream.finish()], True
        given.append(stream.take())
    return [*given, stream.finish()], False


def test_a_character_comes_when_it_is_whole():
    assert grow([b"a\xc3", b"\xa9b", b"\xf0\x9f"]) == (["a", "\u00e9b", "", "\ufffd"], False)


def test_a_stop_text_across_tokens_cuts_before_it():
    assert grow([b"x = 1\n", b"\nde", b"f f"], ["\ndef"]) == (["x = 1", "\n", ""], True)
    assert grow([b"x\n", b"\n", b"y"], ["\ndef"]) == (["x", "\n", "\ny", ""], False)
    assert grow([b"a\n", b"\n"], ["\n\n"]) == (["a", ""], True)


def test_the_stop_text_that_is_complete_first_counts():
    assert grow([b"abcabd"], ["bd", "ca"]) == (["ab"], True)
    assert grow([b"abcd"], ["abcd", "c"]) == (["ab"], True)
    assert grow([b"aab", b"c"], ["abc"]) == (["a", ""], True)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_do_not_matter(seed):
    generator = random.Random(seed)
    text = "".join(generator.choices("ab\n\u00e9\U0001f600", k=30))
    stops = ["".join(generator.choices("ab\n\u00e9", k=generator.randint(1, 4))) for _ in range(3)]
    data = text.encode()
    cuts = sorted(generator.choices(range(len(data) + 1), k=12))
    bounds = zip([0, *cuts], [*cuts, len(data)], strict=True)
    given, is_stopped = grow([data[start:stop] for start, stop in bounds], stops)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert is_stopped == bool(found)
    assert "".join(given) == (text[: min(found)[1]] if found else text)
