"""What is counted in a word is what plain Python counts."""

import base64
import itertools
import math
import random
from collections import Counter

import pytest

pytest.importorskip("megatron.curation._pii_scan", reason="csrc/ is not compiled: make env")

from megatron.benchmark.pii_cases import BASE62
from megatron.curation.pii.randomness import is_gibberish, measured, unreadable

TEXT = b"".join(bytes([n]) for n in range(9, 127) if n >= 32 or n in b"\t\n\r")


def words(alphabet, count=300):
    source = random.Random(1)
    return ["".join(source.choices(alphabet, k=source.randrange(1, 90))) for _ in range(count)]


def test_kinds_changes_pairs_and_entropy_are_counted_as_python_does():
    for word in words(BASE62 + "+/-_="):
        found = measured(word)
        kinds = [c.isdigit() + 2 * c.isupper() + 4 * c.islower() for c in word]
        pairs = [a + b for a, b in itertools.pairwise(word) if (a + b).isalpha()]
        bits = -sum(n / len(word) * math.log2(n / len(word)) for n in Counter(word).values())
        changed = sum(bool(a and b and a != b) for a, b in itertools.pairwise(kinds))
        assert [kinds.count(1), kinds.count(2), kinds.count(4)] == [found.digits, found.capitals, found.small]  # fmt: skip
        assert (found.size, found.pairs) == (len(word), len(pairs))
        assert found.changes == changed / max(len(word) - 1, 1)
        assert found.entropy == pytest.approx(bits)
        common = {pair for pair in map(str.lower, pairs) if measured(pair).common}
        assert found.common == sum(pair.lower() in common for pair in pairs)
    assert measured("the").common == measured("THE").common == 2
    assert measured("qzx").common == measured("éé").common == measured("").size == 0


def test_random_characters_are_gibberish_and_names_are_not():
    random_words = [word for word in words(BASE62) if len(word) >= 24]
    assert sum(is_gibberish(measured(word)) for word in random_words) >= 0.95 * len(random_words)
    for name in ("getElementsByClassName3AndTagName", "some_long_identifier_name", "information"):
        assert not is_gibberish(measured(name))


@pytest.mark.parametrize("spell", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_readable_by_as_much_as_it_stands_for_text(spell):
    source = random.Random(2)
    for size in range(24, 90):
        data = bytes(source.choices(range(256), k=size))
        word = spell(data).decode()
        plain = [base64.b64decode(word.rstrip("=").translate(str.maketrans("-_", "+/"))[n:][: (len(word.rstrip("=")) - n) // 4 * 4]) for n in range(4)]  # fmt: skip
        expected = min(len(one.translate(None, TEXT)) / len(one) for one in plain)
        assert unreadable(word) == pytest.approx(expected)
        text = spell(bytes(source.choices(TEXT, k=size))).decode()
        assert unreadable(text) == unreadable(text[4:]) == 0
        assert unreadable("ab" + text) == 0  # a part that begins elsewhere
