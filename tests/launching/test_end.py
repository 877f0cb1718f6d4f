"""How ends are told, and which one explains the others."""

import pytest

from megatron.launching.end import End, cause


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([1, -9, 1, -15], -9),  # peers of a killed process fail, and the launcher ends the last
        ([1, 124, 1], 124),
        ([76, 1, 76], 1),
        ([1, 2, 1], 2),  # one says what is wrong, the others lose it
        ([75, -15, 75], 75),
        ([143, 1], 1),
        ([75, 1], 1),
        ([-15, -15], -15),
    ],
)
def test_the_cause_is_the_end_that_explains_the_others(codes: list[int], expected: int) -> None:
    assert cause(End(rank, "a", code) for rank, code in enumerate(codes)).code == expected


def test_an_end_names_who_where_and_how() -> None:
    assert str(End(3, "n2", -9)) == "rank 3 on n2 was killed by SIGKILL"
    assert str(End(3, "n2", -200)) == "rank 3 on n2 was killed by signal 200"
    assert str(End(3, "n2", 70)) == "rank 3 on n2 ended with exit code 70"
    assert "rank" not in str(End(0, "n1", 124))  # all end so: rank 0 is not to blame
    lost, left = End(0, "n1", 76), End(0, "n1", 143)
    assert str(lost).startswith(
        "rank 0 on n1 ended because another process was lost (exit code 76)"
    )
    assert str(left) == "rank 0 on n1 left at SIGTERM (exit code 143)"
    assert End.from_json(End(3, "n2", 70).to_json()) == End(3, "n2", 70)
