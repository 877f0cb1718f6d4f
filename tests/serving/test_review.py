"""Choices are looked up before they go out, whole or in chunks, and held back where they are to be withheld."""

import asyncio
from dataclasses import dataclass

import pytest

pytest.importorskip("starlette", reason="needs starlette: requirements.txt")
from megatron.errors import DataError
from megatron.inference.options import SamplingOptions
from megatron.inference.request import Completion, Request, Update
from megatron.serving.completion_answer import Answer
from megatron.serving.completion_call import CompletionCall
from megatron.serving.error import RequestError
from megatron.serving.review import Reviews


@dataclass
class Found:
    answer: dict
    is_too_much: bool


class FakeReviewer:
    """Finds that texts with the word copied are."""

    def __init__(self, withholds: bool) -> None:
        self.withholds = withholds

    def __call__(self, text: str) -> Found:
        return Found({"bytes": len(text)}, "copied" in text)


UPDATES = [
    Update("a", 0, "new ", 1),
    Update("a", 1, "copied ", 2),
    Update("a", 1, "code", 3, Completion("a", 1, "copied code", (2, 3), "length", 1)),
    Update("a", 0, "code", 4, Completion("a", 0, "new code", (1, 4), "length", 1)),
]


def answer() -> Answer:
    request = Request("a", (1,), SamplingOptions(max_new_tokens=2), 2)
    return Answer("x", "m", CompletionCall((request,), 2, 2, ("# ",), False, False, True), None)


def chunks(reviewer: FakeReviewer | None) -> list[list[dict]]:
    """What a client reads of each update."""
    asked = answer()
    reviews = Reviews(reviewer, asked)
    read = []
    for update in UPDATES:
        asked.add(update)
        values = asyncio.run(reviews.chunks([update]))
        read.append([choice for one in values for choice in one["choices"]])
    return read


def texts(read: list[list[dict]]) -> list[str]:
    return ["".join(choice["text"] for choice in choices) for choices in read]


def test_a_stream_passes_and_its_ends_say_what_was_found():
    assert texts(chunks(None)) == ["# new ", "# copied ", "code", "code"]
    read = chunks(FakeReviewer(withholds=False))
    assert texts(read) == ["# new ", "# copied ", "code", "code"]
    assert [choices[-1].get("attribution") for choices in read] == [
        None,
        None,
        {"bytes": 11},
        {"bytes": 8},
    ]


def test_a_stream_is_held_until_it_is_known_and_a_copy_is_taken_out():
    read = chunks(FakeReviewer(withholds=True))
    assert texts(read) == ["", "", "", "# new code"]
    (copied,) = read[2]
    assert (copied["finish_reason"], copied["index"]) == ("content_filter", 1)
    assert read[3][-1]["finish_reason"] == "length"


@pytest.mark.parametrize(("withholds", "second"), [(False, "# copied code"), (True, "# ")])
def test_a_whole_answer_keeps_its_echo(withholds, second):
    asked = answer()
    for update in UPDATES:
        asked.add(update)
    values = asyncio.run(Reviews(FakeReviewer(withholds), asked).whole())
    assert [choice["text"] for choice in values["choices"]] == ["# new code", second]
    assert [choice["attribution"]["bytes"] for choice in values["choices"]] == [8, 11]


def test_what_cannot_be_looked_up_is_an_error_that_says_so():
    class Failing(FakeReviewer):
        def __call__(self, text: str) -> Found:
            raise DataError("an index is damaged")

    with pytest.raises(RequestError, match=r"cannot be looked up .* damaged") as caught:
        chunks(Failing(withholds=True))
    assert caught.value.status == 500
