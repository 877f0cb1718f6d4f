"""The engine: what is written with a cache, in any company, is what the whole forward pass says."""

import re

import pytest
import torch

from megatron.errors import ConfigError
from megatron.inference.options import SamplingOptions
from megatron.inference.request import Request
from tests.inference.models import (
    ARCHITECTURES,
    FullForward,
    make_model,
    open_engine,
    random_prompt,
    request,
)

# 4 rows and chunks of 16 tokens: prompts that share a chunk, that need three, and that wait for a row
REQUESTS = [
    request("short", random_prompt(3), logprobs=2),
    request("drawn", random_prompt(5), 3, logprobs=0, temperature=0.8, top_p=0.9),
    request("long", random_prompt(41), logprobs=1),
    request("scored", random_prompt(20), 2, logprobs=3, prompt_logprobs=True, temperature=0.5),
    request("one", random_prompt(1), 6, logprobs=0, temperature=1.0, top_k=40, max_new_tokens=5),
    request("penalised", random_prompt(4), logprobs=0, repetition_penalty=1.3),
]


def check_full_forward(rank, path):
    reference = FullForward(path)
    done = open_engine(path).run(REQUESTS)
    prompts = {one.name: one.prompt for one in REQUESTS}
    assert [(one.request, one.sample) for one in done] == [
        (one.name, sample) for one in REQUESTS for sample in range(one.num_samples)
    ]
    for completion in done:
        prompt = prompts[completion.request]
        reference.check(prompt, completion)
        assert len(completion.prompt_scores) == (19 if completion.request == "scored" else 0)
        if completion.request in ("short", "long"):  # greedy
            expected = reference.logits(prompt + completion.token_ids).argmax(dim=-1)
            assert completion.token_ids == tuple(expected[len(prompt) - 1 : -1].tolist())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_cached_tokens_have_the_scores_of_a_full_forward(world, tmp_path, kind):
    world(1).run(check_full_forward, make_model(tmp_path / "run", **ARCHITECTURES[kind]))


def check_company(rank, path):
    engine = open_engine(path)
    together = engine.run(REQUESTS)
    alone = [done for one in REQUESTS for done in engine.run([one])]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert engine.is_idle
    drawn = [one.token_ids for one in alone if one.request == "drawn"]
    assert len(set(drawn)) == 3  # samples differ


@pytest.mark.parametrize("kind", ["multi-query", "grouped, rotary, window"])
def test_a_text_does_not_depend_on_its_neighbours(world, tmp_path, kind):
    world(1).run(check_company, make_model(tmp_path / "run", **ARCHITECTURES[kind]))


def check_entering_and_leaving(rank, path):
    reference = FullForward(path)
    engine = open_engine(path, max_rows=3)
    requests = [
        request(str(size), random_prompt(size), logprobs=0, max_new_tokens=2 + size % 7)
        for size in (2, 51, 9, 17, 1, 12)
    ]
    later = list(requests)
    updates = []
    num_steps = 0
    while later or not engine.is_idle:
        if later:
            # the second has four chunks to be read while the first ends
            engine.add(later.pop(0))
        updates += engine.step()
        num_steps += 1
        if num_steps == 7:
            (update,) = engine.cancel("9")
            assert update.completion.finish_reason == "cancelled"
            assert engine.cancel("9") == []
    done = {one.request: one.completion for one in updates if one.completion}
    assert set(done) == {"2", "51", "17", "1", "12"}
    for one in requests:
        if one.name in done:
            reference.check(one.prompt, done[one.name])
            texts = [update.text for update in updates if update.request == one.name]
            assert "".join(texts) == done[one.name].text


def test_requests_enter_leave_and_are_cancelled_at_any_step(world, tmp_path):
    world(1).run(check_entering_and_leaving, make_model(tmp_path / "run"))


TWO_CLIENTS = [
    request("much", random_prompt(4), 9, client="a", temperature=1.0),
    request("more", random_prompt(6), 3, client="a", temperature=1.0),
    request("little", random_prompt(3), 2, client="b", temperature=1.0),
]


def check_turns(rank, path):
    engine = open_engine(path, max_rows=2)
    expected = {one.name: engine.run([one]) for one in TWO_CLIENTS}
    engine.take_begun()
    for one in TWO_CLIENTS:
        engine.add(one)
    done, begun = [], []
    while not engine.is_idle:
        done += [update.completion for update in engine.step() if update.completion]
        begun += [(name, len(done)) for name in engine.take_begun()]
    assert [one.request for one in done[:4]] == ["much", "little"] * 2  # a row each
    assert dict(reversed(begun)) == {"much": 0, "little": 0, "more": 10}
    for name, alone in expected.items():
        texts = [(one.sample, one.token_ids) for one in done if one.request == name]
        assert sorted(texts) == [(one.sample, one.token_ids) for one in alone]


def test_a_client_with_much_does_not_hold_up_another(world, tmp_path):
    world(1).run(check_turns, make_model(tmp_path / "run"))


def check_ends(rank, path):
    engine = open_engine(path)
    prompt = random_prompt(5)
    (free,) = engine.run([request("free", prompt)])
    assert free.finish_reason == "length" and len(free.token_ids) == 10
    third = free.token_ids[2]
    ended = Request("ended", prompt, SamplingOptions(max_new_tokens=10), 1, frozenset([third]))
    (ended,) = engine.run([ended])
    assert ended.finish_reason == "end_of_text"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(third) + 1]
    drawn = {"max_new_tokens": 50, "temperature": 1.0}
    (free,) = engine.run([request("free", prompt, **drawn)])
    found = re.search("[a-z ]{2}", free.text)
    assert found, "this model writes no text to stop at"
    (stopped,) = engine.run([request("stopped", prompt, stop=("never", found[0]), **drawn)])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: found.start()]


def test_a_completion_ends_where_it_should(world, tmp_path):
    world(1).run(check_ends, make_model(tmp_path / "run"))


def check_refusals(rank, path):
    engine = open_engine(path)
    prompt = random_prompt(5)
    for bad, words in [
        (request("a", ()), "prompt is empty"),
        (request("a", (280,)), "id 280"),
        (
            request("a", random_prompt(60)),
            "length is 64 tokens; the prompt has 60, and --max-new-tokens is 10",
        ),
        (request("a", prompt, 0), "0 samples"),
        (request("a", prompt, temperature=-1.0), "--temperature is -1"),
        (request("a", prompt, top_p=0.0), "--top-p is 0"),
        (request("a", prompt, stop=("",)), "--stop is empty"),
        (request("a", prompt, prompt_logprobs=True), "--prompt-logprobs needs --logprobs"),
    ]:
        with pytest.raises(ConfigError, match=words):
            engine.add(bad)
    engine.add(request("a", prompt))
    with pytest.raises(ConfigError, match="a is in work already"):
        engine.add(request("a", prompt))
    assert len(engine.run([])) == 0 and engine.is_idle


def test_a_request_that_cannot_be_served_is_refused_alone(world, tmp_path):
    world(1).run(check_refusals, make_model(tmp_path / "run"))


def check_dtype(rank, path):
    reference = FullForward(path)
    prompt = random_prompt(30)
    for dtype in (torch.bfloat16, torch.float16):
        engine = open_engine(path, dtype=dtype)
        done = engine.run([request("a", prompt, logprobs=0), request("b", random_prompt(4))])
        expected = reference.logits(prompt + done[0].token_ids).log_softmax(dim=-1)
        for place, score in enumerate(done[0].scores, start=len(prompt) - 1):
            assert abs(float(expected[place, score.token]) - score.logprob) < 0.1


def test_half_precision_is_near_the_full_forward(world, tmp_path):
    world(1).run(check_dtype, make_model(tmp_path / "run", **ARCHITECTURES["multi-query"]))
