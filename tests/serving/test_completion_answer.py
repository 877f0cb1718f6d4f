"""What clients read of a call: offsets and spellings of tokens, chunk by chunk as a whole, and nothing where nothing is."""

import pytest

from megatron.inference.options import SamplingOptions
from megatron.inference.request import Completion, Request, TokenScore, Update
from megatron.options import TokenizerConfig
from megatron.serving.completion_answer import Answer
from megatron.serving.completion_call import CompletionCall
from megatron.tokenizer.interface import Tokenizer
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.convert.runs import write_tokenizer_files


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer_files(folder)
    return build_tokenizer(TokenizerConfig(tokenizer_file=str(folder / "tokenizer.json")))


def answer(tokenizer: Tokenizer, max_tokens: int, echo: str | None = None) -> Answer:
    options = SamplingOptions(max_new_tokens=max(max_tokens, 1), logprobs=1)
    request = Request("a", (tokenizer.eod,), options)
    echoes = None if echo is None else (echo,)
    call = CompletionCall((request,), 1, max_tokens, echoes, True, True, False)
    return Answer("x", "m", call, tokenizer)


def test_nothing_to_write_ends_by_its_length_also_in_a_stream(tokenizer) -> None:
    eod = tokenizer.eod
    end = Completion("a", 0, "", (eod,), "end_of_text", 1, (TokenScore(eod, -0.5),))
    update = Update("a", 0, "", eod, end, end.scores[0])
    asked = answer(tokenizer, 0, "# ")
    asked.add(update)
    (chunk,) = asked.chunk(update)["choices"]
    (whole,) = asked.whole()["choices"]
    assert chunk["finish_reason"] == whole["finish_reason"] == "length"
    assert chunk["text"] == "# " and chunk["logprobs"]["tokens"] == []
    assert asked.usage()["completion_tokens"] == 0


def test_the_chosen_token_is_named_where_no_other_is_asked_for(tokenizer) -> None:
    (id,) = tokenizer.tokenize("a")
    end = Completion("a", 0, "a", (id,), "length", 1, (TokenScore(id, -2.0),))
    asked = answer(tokenizer, 1)
    asked.add(Update("a", 0, "a", id, end, end.scores[0]))
    (choice,) = asked.whole()["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -2.0}]


def test_parts_of_a_character_and_sentinels_are_spelled_and_have_their_places(tokenizer) -> None:
    ids = [*tokenizer.tokenize("aé="), tokenizer.eod]
    scores = tuple(TokenScore(id, -1.0, ((tokenizer.eod, -0.1),)) for id in ids)
    texts = ["a", "", "é", "=", ""]
    end = Completion("a", 0, "aé=", tuple(ids), "end_of_text", 1, scores)
    asked = answer(tokenizer, 9)
    streamed: dict[str, list] = {name: [] for name in ("tokens", "text_offset", "top_logprobs")}
    for score, text in zip(scores, texts, strict=True):
        done = end if score is scores[-1] else None
        update = Update("a", 0, text, score.token, done, score)
        asked.add(update)
        (choice,) = asked.chunk(update)["choices"]
        for name, values in streamed.items():
            values += choice["logprobs"][name]
    (whole,) = asked.whole()["choices"]
    assert streamed["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "=", "<|endoftext|>"]
    assert streamed["text_offset"] == [0, 1, 1, 2, 3]
    assert streamed["top_logprobs"][0] == {"<|endoftext|>": -0.1, "a": -1.0}
    assert {name: whole["logprobs"][name] for name in streamed} == streamed
    assert whole["finish_reason"] == "stop"
