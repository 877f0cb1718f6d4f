"""A server of its own process, as OpenAI's client and others that come over the network meet it."""

import contextlib
import functools
import hashlib
import json
import re
import select
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.conftest import PROMPT
from tests.serving.process import ROOT, ServerProcess

openai = pytest.importorskip("openai", reason="needs OpenAI's client: requirements-dev.txt")
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
LONG = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True}  # seconds, if nothing ends it


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> "openai.OpenAI":
    # the server ends what is idle for a moment: a connection is not to be used again just then
    transport = openai.DefaultHttpxClient(headers={"Connection": "close"})
    with openai.OpenAI(
        base_url=server.url, api_key="none", max_retries=0, http_client=transport
    ) as client:
        yield client


def test_openais_client_gets_what_the_engine_writes(client, written) -> None:
    answer = client.completions.create(
        model="run", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=2
    )
    (expected,) = written[0]
    (choice,) = answer.choices
    assert choice.text == expected.text and choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids) == 12
    assert choice.logprobs.token_logprobs == pytest.approx([s.logprob for s in expected.scores])
    for top, score in zip(choice.logprobs.top_logprobs, expected.scores, strict=True):
        assert set(dict(score.top).values()) <= set(top.values()) and len(top) in (2, 3)


def test_a_stream_is_the_same_text_in_pieces(client, written) -> None:
    stream = client.completions.create(
        model="run",
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        logprobs=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    (expected,) = written[0]
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["length"]
    scores = [score for chunk in chunks for score in chunk.choices[0].logprobs.token_logprobs]
    assert scores == pytest.approx([score.logprob for score in expected.scores])
    assert last.choices == [] and last.usage.completion_tokens == 12


def test_samples_and_infillings_are_the_engines(client, written) -> None:
    answer = client.completions.create(
        model="run", prompt="x = ", suffix="\n", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text == written[1][0].text
    drawn = {"model": "run", "max_tokens": 9, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    answer = client.completions.create(prompt=PROMPT, n=3, **drawn)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [one.text for one in written[2]]
    two = client.completions.create(prompt=["x", PROMPT], **drawn)
    assert two.choices[1].text == written[2][0].text
    texts = ["", "", ""]
    for chunk in client.completions.create(prompt=PROMPT, n=3, stream=True, echo=True, **drawn):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [PROMPT + one.text for one in written[2]]


def test_the_program_of_the_documentation_runs(server) -> None:
    (program,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL
    )
    for ours, theirs in (("http://127.0.0.1:8000/v1", server.url), ("starcoder-tiny", "run")):
        assert ours in program
        program = program.replace(ours, theirs)
    names: dict = {}
    exec(program, names)
    names["client"].close()
    assert names["middle"].choices[0].finish_reason in ("length", "stop")


def test_a_stop_text_ends_a_stream_before_it_wherever_tokens_end(client) -> None:
    asked = {"model": "run", "prompt": PROMPT, "max_tokens": 200, "seed": 3}
    text = client.completions.create(**asked).choices[0].text
    place = next(n for n in range(20, len(text)) if "\ufffd" not in text[n : n + 3])
    stop = text[place : place + 3]
    expected = text[: text.index(stop)]
    choice = client.completions.create(**asked, stop=[stop, "never"]).choices[0]
    assert (choice.text, choice.finish_reason) == (expected, "stop")
    chunks = list(client.completions.create(**asked, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_echo_scores_the_prompt_also_where_nothing_is_written(client, written) -> None:
    (expected,) = written[3]
    for max_tokens, scores in ((12, expected.scores), (0, ())):
        answer = client.completions.create(
            model="run", prompt=PROMPT, max_tokens=max_tokens, temperature=0, logprobs=2, echo=True
        )
        (choice,) = answer.choices
        first, *others = choice.logprobs.token_logprobs
        all_scores = [*expected.prompt_scores, *scores]
        assert first is None and others == pytest.approx([score.logprob for score in all_scores])
        assert choice.text == PROMPT + (expected.text if max_tokens else "")
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            if offset < len(PROMPT):
                assert PROMPT[offset:].startswith(token)
        assert answer.usage.completion_tokens == max_tokens


def test_errors_are_those_that_openais_client_knows(client) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is 3") as refusal:
        client.completions.create(model="run", prompt="a", temperature=3)
    assert refusal.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError, match="knows another method") as wrong:
        client.get("/completions", cast_to=object)
    assert wrong.value.status_code == 405 and wrong.value.response.headers["allow"] == "POST"
    with pytest.raises(openai.NotFoundError):  # and no redirection to what its Host says
        client.post("/completions/", body={"prompt": "a"}, cast_to=object)
    with pytest.raises(openai.NotFoundError, match="There is no chat"):
        client.chat.completions.create(model="run", messages=[])
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").id == "run"


def test_a_request_has_one_id_in_header_answer_and_log(server, client) -> None:
    asked = {"model": "run", "prompt": PROMPT, "max_tokens": 2, "extra_body": {"ignore_eos": True}}
    for given, has_it in (("Trace-1.a/b:c", True), ("", False), ("a b", False), ("x" * 129, False)):
        answer = client.completions.create(**asked, extra_headers={"X-Request-Id": given})
        name = answer._request_id
        assert (name == given) == has_it and answer.id == f"cmpl-{name}"
        client_name = hashlib.sha256(b"none").hexdigest()[:8]
        line = f"request {name} of key {client_name}: 200, waited .* s, tokens read 7, written 2,"
        server.wait_for_line(line)
    with client.completions.create(**asked, stream=True) as stream:
        names = {chunk.id for chunk in stream}
        assert names == {f"cmpl-{stream.response.headers['x-request-id']}"}
        server.wait_for_line(f"request {names.pop()[5:]} of .*: 200, .* written 2,")
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model="run", prompt="a", temperature=3)
    server.wait_for_line(f"request {refusal.value.request_id} of .*: 400, .* tokens read 0,")
    with pytest.raises(openai.NotFoundError) as missing:  # has an id, and no line
        client.get("/nothing", cast_to=object)
    assert missing.value.request_id and not any(missing.value.request_id in x for x in server.log)


def test_the_log_tells_of_a_client_that_left_and_of_the_proxy_that_it_came_by(server) -> None:
    body = json.dumps(LONG | {"stream": True}).encode()
    headers = (b"X-Forwarded-For: 192.0.2.7", b"X-Request-Id: forwarded")
    with server.connect() as connection:
        connection.sendall(_post(body, *headers))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    server.wait_for_line(r"request forwarded of 192\.0\.2\.7: 499, .* tokens read 7, written [1-9]")
    server.wait_for("rows_in_use", lambda number: number == 0)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_frees_its_rows_at_once(server, streams) -> None:
    before = server.metrics()['megatron_serving_requests_total{outcome="cancelled"}']
    body = json.dumps(LONG | {"n": 3, "stream": streams}).encode()
    with server.connect() as connection:
        connection.sendall(_post(body))
        if streams:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        server.wait_for("rows_in_use", lambda number: number == 3)
    server.wait_for('requests_total{outcome="cancelled"}', lambda number: number == before + 1)
    server.wait_for("rows_in_use", lambda number: number == 0)
    assert server.metrics()["megatron_serving_samples"] == 0


def test_a_client_that_leaves_the_queue_gives_its_place_back(server, client) -> None:
    asked = {"model": "run", "prompt": PROMPT, "max_tokens": 4000, "n": 3}
    with client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
        with server.connect() as connection:
            connection.sendall(_post(b'{"prompt": "a"}'))
            server.wait_for("waiting", lambda number: number == 1)
        server.wait_for("waiting", lambda number: number == 0)
        assert server.metrics()["megatron_serving_samples"] == 3
    server.wait_for("rows_in_use", lambda number: number == 0)


def test_what_is_too_much_is_answered_with_429(server, client) -> None:
    asked = {"model": "run", "prompt": PROMPT, "n": 3, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**asked, max_tokens=4000, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="room for 1 more") as refusal:
            client.completions.create(model="run", prompt="a", n=2)
        assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 60
    server.wait_for("rows_in_use", lambda number: number == 0)


def test_a_stream_that_waits_tells_nothing_before_a_row_is_free(server, client) -> None:
    asked = {"model": "run", "prompt": PROMPT, "n": 3, "extra_body": {"ignore_eos": True}}
    with client.completions.create(**asked, max_tokens=300, stream=True) as stream:
        next(iter(stream))
        with client.completions.create(model="run", prompt="a", stream=True):
            assert server.metrics()["megatron_serving_waiting"] == 0
    server.wait_for("rows_in_use", lambda number: number == 0)


def test_a_body_is_bounded_however_it_comes(server) -> None:
    status, error = server.send(json.dumps({"prompt": "a" * 30_000}).encode())
    assert status == 413 and "20000 bytes" in error["error"]["message"]
    with server.connect() as connection:
        connection.sendall(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n4e20\r\n" + b" " * 20_000 + b"\r\n"
        )
        connection.sendall(b"1\r\n \r\n")
        assert b" 413 " in connection.recv(100)


def _post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"Host: localhost", b"Content-Length: %d" % len(body), *headers]
    return b"POST /v1/completions HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + body


def _ask_raw(server: ServerProcess, text: bytes) -> bytes:
    """Send bytes and read to the end of the connection."""
    with server.connect() as connection:
        connection.sendall(text)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


def test_requests_behind_one_another_are_answered_in_order(server) -> None:
    bodies = [b'{"prompt": "a", "ignore_eos": true, "max_tokens": %d}' % n for n in (4, 2, 3)]
    asked = [_post(body) for body in bodies]
    answer = _ask_raw(server, b"".join(asked))
    numbers = re.findall(rb'"completion_tokens":(\d)', answer)
    assert answer.count(b"HTTP/1.1 200") == 3 and numbers == [b"4", b"2", b"3"]


def test_a_body_may_come_in_chunks_that_split_a_character(server) -> None:
    body = '{"prompt": "é", "max_tokens": 1, "echo": true}'.encode()
    head = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:13], body[13:], b"")]
    answer = _ask_raw(server, head + b"".join(chunks))
    assert answer.startswith(b"HTTP/1.1 200") and '"text":"é'.encode() in answer


def test_headers_that_do_not_come_end_the_connection(server) -> None:
    asked_once = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    texts = [b"", b"GET /health HTTP/1.1\r\nHost: local", asked_once + b"GET "]
    with ThreadPoolExecutor() as pool:
        *nothing, answer = pool.map(functools.partial(_ask_raw, server), texts)
    assert nothing == [b"", b""] and answer.count(b"HTTP/1.1 200") == 1


def test_an_answer_that_is_not_read_ends_the_connection(server) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # megabytes of answers
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000)
        poll = select.poll()
        poll.register(connection, select.POLLERR | select.POLLHUP)
        assert poll.poll(60_000)


def test_a_body_that_does_not_come_is_answered_with_408(server) -> None:
    assert _ask_raw(server, HEAD + b"Content-Length: 9\r\n\r\n{").startswith(b"HTTP/1.1 408 ")


def test_one_connection_too_many_is_answered_with_429(server) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(21)]
        readable, _, _ = select.select(connections, [], [], 60)
        assert readable == [connections[-1]]
        assert connections[-1].recv(100).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize(
    "headers, status",
    [
        ("Host: localhost:8000", 200),
        ("Host: [::1]", 200),
        ("Host: attacker.example", 421),
        ("Host: 127.0.0.1.attacker.example", 421),
        ("Host: localhost:8000\r\nOrigin: http://localhost:8000", 200),
        ("Host: localhost:8000\r\nOrigin: http://attacker.example", 403),
        ("Host: localhost:8000\r\nOrigin: null", 403),
    ],
)
def test_a_page_of_another_place_is_kept_out(server, headers, status) -> None:
    head = f"GET /v1/models HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n"
    answer = _ask_raw(server, head.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"access-control" not in answer.lower()


def test_what_is_no_http_is_answered_with_400(server) -> None:
    for text in (b"\x16\x03\x01\x02\x00\x01\x00", HEAD + b"X: y\r\n" * 20_000):
        assert _ask_raw(server, text + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_sigterm_answers_what_is_in_work_and_ends_well(run, tmp_path) -> None:
    (tmp_path / "keys").write_text("a-key-of-sixteen-or-more\n")
    flags = ("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys"), "--grace", "0.2")
    with ServerProcess(run, *flags) as server:
        assert server.ask(prompt="a")[0] == 401
        key = {"Authorization": "Bearer a-key-of-sixteen-or-more"}
        assert server.send(b'{"prompt": "a"}', **key)[0] == 200
        server.wait_for_line("request .* of key 1: 200")
        assert server.send(b'{"prompt": "a"}', Authorization="Bearer another")[0] == 401
        assert server.metrics(**key)['megatron_serving_requests_total{outcome="refused"}'] == 2
        client = openai.OpenAI(
            base_url=server.url.replace("0.0.0.0", "127.0.0.1"),
            api_key="a-key-of-sixteen-or-more",
            max_retries=0,
        )
        with client, client.completions.create(model="run", stream=True, extra_body=LONG, prompt="") as stream:  # fmt: skip
            chunks = iter(stream)
            next(chunks)
            server.terminate()
            with pytest.raises(openai.APIError, match="the server is stopping"):
                list(chunks)
        assert server.wait() == [0], server.log


def test_a_signal_that_comes_twice_at_once_is_one(run) -> None:
    """As from systemd, which signals a launcher and what it started, and from the launcher."""
    with ServerProcess(run) as server, server.connect() as connection:
        connection.sendall(_post(b'{"prompt": "a", "max_tokens": 2000, "ignore_eos": true}'))
        server.wait_for("rows_in_use", lambda number: number == 1)
        server.terminate()
        server.wait_for_line("SIGTERM: no new requests")
        server.terminate()
        parts = iter(lambda: connection.recv(65536), b"")
        assert b'"completion_tokens":2000' in b"".join(parts)
        assert server.wait() == [0], server.log


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--host", "0.0.0.0"], "give --api-key-file FILE"),
        (["--port", "70000"], "--port is 70000; allowed: from 0, up to 65535"),
        (["--host", "192.0.2.1", "--api-key-file", "keys"], "192.0.2.1 --port 8000 cannot be list"),
        (["--api-key-file", "short"], "key 1 has 3 characters; allowed: 16 or more"),
        (["--api-key-file", "none"], "none cannot be read"),
        (["--tensor-model-parallel-size", "2"], "is 2 processes and there are 1"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(
    run, tmp_path, monkeypatch, flags, words
) -> None:
    from megatron.errors import ConfigError
    from tools import serve

    (tmp_path / "keys").write_text("a-key-of-sixteen-or-more\n")
    (tmp_path / "short").write_text("abc\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(words)):
        serve.main(["--load", str(run), *flags])


def test_a_port_that_is_taken_is_named(run) -> None:
    from megatron.errors import ConfigError
    from tools import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be listened at"):
            serve.main(["--load", str(run), "--port", str(port)])


def test_help_imports_no_torch() -> None:
    code = "import sys, tools.serve; assert 'torch' not in sys.modules and 'uvicorn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
