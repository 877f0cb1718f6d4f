"""Whose turn it is."""

from megatron.inference.waiting_line import WaitingLine


def line_of(words: str) -> WaitingLine[str]:
    """A line of "a1 b1": who asks, and for what."""
    line = WaitingLine[str](lambda item: item[0])
    for item in words.split():
        line.append(item)
    return line


def taken(line: WaitingLine[str]) -> str:
    items = []
    while line:
        items.append(line.first)
        assert line.pop() == items[-1]
    return " ".join(items)


def test_clients_take_turns_and_what_each_asked_for_keeps_its_order() -> None:
    line = line_of("a1 a2 a3 a4 b1 a5 c1 c2")
    assert len(line) == 8 and sorted(line) == ["a1", "a2", "a3", "a4", "a5", "b1", "c1", "c2"]
    assert taken(line) == "a1 b1 c1 a2 c2 a3 a4 a5"


def test_one_client_is_served_in_order() -> None:
    assert taken(line_of("a3 a1 a2")) == "a3 a1 a2"


def test_a_newcomer_waits_for_one_turn_of_each_other() -> None:
    line = line_of("a1 a2 a3 a4 a5 b1 b2 b3")
    assert [line.pop(), line.pop()] == ["a1", "b1"]
    line.append("c1")
    assert taken(line) == "a2 b2 c1 a3 b3 a4 a5"
    line.append("a6")  # who had all that it wanted is a newcomer again
    assert taken(line) == "a6"


def test_what_is_put_back_is_next() -> None:
    line = line_of("a1 b1 a2 c1")
    before = taken(line_of("a1 b1 a2 c1"))
    items = [line.pop() for _ in range(3)]
    line.put_back(items)
    assert len(line) == 4
    assert [line.pop() for _ in range(3)] == items and before.startswith(" ".join(items))
    assert taken(line) == "a2"


def test_what_is_removed_leaves_the_turns_of_others() -> None:
    line = line_of("a1 b1 a2 c1 b2")
    assert sorted(line.remove(lambda item: item in ("a1", "a2", "b1", "x"))) == ["a1", "a2", "b1"]
    assert taken(line) == "b2 c1"
