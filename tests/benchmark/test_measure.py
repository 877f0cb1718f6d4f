"""The table of speeds holds the ratios of each round, not of the medians."""

import pytest

from megatron.benchmark.measure import HEADER, Row, measure, shown, table


def test_sides_take_turns_and_the_order_alternates():
    turns = []

    def side(name, seconds):
        def work():
            turns.append(name)
            return seconds

        return work

    rows = measure(
        "work",
        "MB/s",
        10.0,
        side("ours", 2.0),
        {"a": side("a", 4.0), "b": side("b", 1.0)},
        rounds=2,
    )
    assert turns == ["ours", "a", "b", "b", "a", "ours"]
    assert [(row.peer_name, row.ours, row.peer) for row in rows] == [
        ("a", (5.0, 5.0), (2.5, 2.5)),
        ("b", (5.0, 5.0), (10.0, 10.0)),
    ]


def test_ratio_is_the_median_of_the_rounds_with_their_extremes():
    # The machine is four times slower in one round: a ratio of medians would not see that both are.
    row = Row("work", "MB/s", (100.0, 400.0, 90.0), "peer", (10.0, 40.0, 30.0))
    assert row.ratios == [3.0, 10.0, 10.0]
    assert row.cells() == ("work", "MB/s", "100", "90 to 400", "peer", "30", "10x (3 to 10)", "")


def test_table_is_markdown_with_a_row_each():
    text = table(
        [Row("a", "1/s", (0.12345,)), Row("b", "1/s", (12345.6,), "peer", (12345.6,), "note")]
    )
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(HEADER)
    assert "0.123" in lines[2] and "12,346" in lines[3]


@pytest.mark.parametrize("rounds", [1, 3])
def test_without_a_peer_there_is_one_row(rounds):
    (row,) = measure("work", "1/s", 1.0, lambda: 0.5, {}, rounds=rounds)
    assert row.ours == (2.0,) * rounds and row.cells()[4:7] == ("-", "", "")


def test_rows_are_shown_as_they_come(capsys):
    def rows():
        yield Row("a", "1/s", (2.0,))
        assert "a  1/s  2" in capsys.readouterr().err
        yield Row("b", "1/s", (3.0,))

    assert [row.what for row in shown(rows())] == ["a", "b"]
    assert "b  1/s  3" in capsys.readouterr().err
