"""The body of a request: every form of a prompt, OpenAI's parameters, and what is refused with a reason."""

import json

import pytest

from megatron.inference.prompt import infilling_ends, infilling_ids
from megatron.options import TokenizerConfig
from megatron.serving.completion_call import CompletionCall, ServedModel, read_call
from megatron.serving.error import RequestError
from megatron.tokenizer.tokenizer import build_tokenizer
from tests.convert.runs import write_tokenizer_files
from tests.serving.parameters import OPENAIS, OURS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    write_tokenizer_files(folder)
    config = TokenizerConfig(tokenizer_file=str(folder / "tokenizer.json"))
    return ServedModel("tiny", build_tokenizer(config), 64, max_samples=6, max_tokens=200)


def read(served: ServedModel, /, **values: object) -> CompletionCall:
    return read_call(json.dumps({"prompt": "a"} | values).encode(), "x", "", served)


def test_every_form_of_a_prompt_becomes_ids(model: ServedModel) -> None:
    ids = model.tokenizer.tokenize("def f(")
    for prompt, expected in [
        ("def f(", [ids]),
        (["def f(", "x"], [ids, model.tokenizer.tokenize("x")]),
        (ids, [ids]),
        ([ids, [20]], [ids, [20]]),
        ("", [[model.tokenizer.eod]]),
    ]:
        call = read(model, prompt=prompt, echo=True)
        assert [list(request.prompt) for request in call.requests] == expected
        assert len({request.name for request in call.requests}) == len(expected)
    assert read(model, prompt=[ids], echo=True).echoes == ("def f(",)


def test_defaults_are_those_of_openai(model: ServedModel) -> None:
    call = read(model)
    options = call.requests[0].options
    assert options.max_new_tokens == 16 and options.temperature == options.top_p == 1.0
    assert not (call.streams or call.echoes or call.gives_logprobs or options.ignore_eod)
    assert read(model).requests[0].options.seed != options.seed
    assert read(model, seed=5).requests[0].options.seed == 5
    nulls = dict.fromkeys({*OPENAIS, *OURS} - {"prompt"})
    assert read(model, **nulls).max_tokens == 16
    assert read(model, best_of=2, n=2, presence_penalty=0, logit_bias={}, user="u").num_choices == 2


def test_a_suffix_asks_for_an_infilling_in_either_order(model: ServedModel) -> None:
    for order in ("psm", "spm"):
        (request,) = read(model, prompt="f(", suffix=")", fim_order=order).requests
        assert list(request.prompt) == infilling_ids(model.tokenizer, "f(", ")", order)
        assert request.end_ids == infilling_ends(model.tokenizer)
    assert read(model).requests[0].end_ids == frozenset()


def test_sentinels_are_text_unless_asked_for(model: ServedModel) -> None:
    sentinel = model.tokenizer.special_tokens["<fim_prefix>"]
    for is_asked in (False, True):
        (request,) = read(model, prompt="<fim_prefix>a", sentinels=is_asked).requests
        assert (request.prompt[0] == sentinel) == is_asked


def test_nothing_to_write_is_one_token_that_is_not_told(model: ServedModel) -> None:
    call = read(model, max_tokens=0, echo=True, logprobs=1)
    assert call.max_tokens == 0
    assert call.requests[0].options.max_new_tokens == 1
    assert call.requests[0].options.prompt_logprobs


@pytest.mark.parametrize(
    "values, words",
    [
        ({"prompt": None}, "prompt is missing; allowed: a string, a list of strings"),
        ({"prompt": {"a": None}}, 'prompt is {"a":null}; allowed'),
        ({"prompt": [[True]] * 99}, r"prompt is \[(\[true\],)+\[…; allowed"),
        ({"prompt": []}, "prompt is \\[\\]"),
        ({"prompt": [[]]}, "prompt is"),
        ({"prompt": ["a", 3]}, "prompt is"),
        ({"prompt": [True]}, "prompt is"),
        ({"prompt": [1.0]}, "prompt is"),
        ({"prompt": [280]}, "prompt is 280; allowed: ids from 0 to 279"),
        ({"prompt": [-1]}, "prompt is -1"),
        ({"prompt": "x = 1\n" * 30}, "this model's maximum context length is 64 tokens; the prompt has 180, and max_tokens is 16; shorten one of them"),
        ({"prompt": [5] * 64, "max_tokens": 0}, "the prompt has 64, and max_tokens is 0; shorten it: there has to be room for one"),
        ({"prompt": "x" * 100_000}, "this model's maximum context length is 64 tokens; the prompt has more than 64, and"),
        ({"prompt": [5], "suffix": "a"}, "suffix needs prompts that are strings"),
        ({"prompt": ["a"] * 4, "n": 2}, "4 prompts with n 2 are 8 samples; allowed in a request: 6"),
        ({"prompt": ["a"] * 6, "max_tokens": 40}, "are 246 tokens; allowed in a request: 200"),
        ({"model": "gpt-4"}, "model is \"gpt-4\"; here is 'tiny' only"),
        ({"model": 3}, "model is 3; here is 'tiny' only"),
        ({"max_tokens": 64}, "max_tokens is 64; allowed: a whole number from 0 to 63"),
        ({"max_tokens": "9"}, 'max_tokens is "9"'),
        ({"max_tokens": 1e300}, "max_tokens is 1e\\+300"),
        ({"n": 0}, "n is 0; allowed: a whole number from 1 to 6"),
        ({"n": True}, "n is true"),
        ({"temperature": -0.1}, "temperature is -0.1; allowed: a number from 0 to 2"),
        ({"temperature": "warm"}, 'temperature is "warm"'),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop": ""}, 'stop is ""'),
        ({"stop": ["a"] * 17}, "a string, or up to 16"),
        ({"stop": ["a", 3]}, "stop is"),
        ({"stop": "a" * 300}, "each of 1 to 256 characters"),
        ({"logprobs": 21}, "logprobs is 21; allowed: a whole number from 0 to 20"),
        ({"stream": 1}, "stream is 1; allowed: true, false"),
        ({"stream_options": {"include_usage": True}}, 'with "stream": true an object'),
        ({"stream": True, "stream_options": {"usage": True}}, "'stream_options.usage' is not a para"),
        ({"stream": True, "echo": True, "logprobs": 1}, "echo with logprobs"),
        ({"suffix": "a", "echo": True, "logprobs": 1}, "echo with logprobs"),
        ({"fim_order": "pms"}, 'fim_order is "pms"; allowed: psm, spm'),
        ({"best_of": 2}, "best_of is 2; .* equal to n is allowed too"),
        ({"best_of": True}, "best_of is true"),
        ({"presence_penalty": False}, "presence_penalty is false"),
        ({"logit_bias": {"5": 1}}, "logit_bias is .* use stop, top_k or top_p"),
        ({"presence_penalty": 0.5}, "presence_penalty is 0.5; .* use repetition_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty is -1"),
        ({"max_token": 5}, "'max_token' is not a parameter here; did you mean max_tokens?"),
        ({"max_completion_tokens": 5}, "is not a parameter here; send max_tokens"),
        ({"messages": []}, "there is no chat; send the text to continue as prompt"),
        ({"xyzzy": 5}, "'xyzzy' is not a parameter here; leave it out"),
        ({"stream": True, "stream_options": {"include_use": True}}, "did you mean stream_options.include_usage?"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(model: ServedModel, values, words) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        read(model, **values)
    error = refusal.value
    assert error.status == (404 if "model" in values else 400)
    assert error.to_json()["error"]["type"] == "invalid_request_error"
    assert error.param is not None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b"\xff", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", b"[" * 100_000, b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_object_of_json_is_refused(model: ServedModel, body) -> None:
    with pytest.raises(RequestError):
        read_call(body, "x", "", model)
