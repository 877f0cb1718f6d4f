"""A request's id, and the line that the log has of it."""

import asyncio
import re

import pytest

pytest.importorskip("uvicorn", reason="needs uvicorn: requirements.txt")
from megatron.serving import trace as trace_module
from megatron.serving.trace import Tracing, trace_of


def ask(monkeypatch, given: bytes, *, tells: bool = True, is_told: bool = True) -> tuple[str, list]:
    """Give the id of the answer to a request of 192.0.2.7, and what the log says."""
    lines, messages = [], []
    monkeypatch.setattr(trace_module.logger, "info", lambda text, *args: lines.append(text % args))

    async def answer(scope, _receive, send) -> None:
        trace = trace_of(scope)
        trace.is_told, trace.num_read, trace.num_written = is_told, 5, 7
        await send({"type": "http.response.start", "status": 418, "headers": []})

    async def send(message) -> None:
        messages.append(message)

    headers = [(b"x-request-id", given)]
    scope = {"type": "http", "headers": headers, "client": ("192.0.2.7", 5)}
    asyncio.run(Tracing(answer, tells=tells)(scope, None, send))
    ((name, value),) = messages[0]["headers"]
    assert name == b"x-request-id"
    return value.decode(), lines


@pytest.mark.parametrize("given", [b"a", b"Root=1-67891233-abcdef:0/1+2@x", b"x" * 128])
def test_a_well_formed_id_is_kept_and_told(monkeypatch, given) -> None:
    found, (line,) = ask(monkeypatch, given)
    assert found == given.decode()
    words = r"request (\S+) of 192\.0\.2\.7: 418, waited 0\.000 s, tokens read 5, written 7, [\d.]+ s in all"
    assert re.fullmatch(words, line)[1] == found


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\nb", "é".encode(), b'"', b"a;b"])
def test_any_other_is_replaced(monkeypatch, given) -> None:
    found, (line,) = ask(monkeypatch, given)
    assert re.fullmatch("[0-9a-f]{32}", found) and f"request {found} of" in line
    assert ask(monkeypatch, given)[0] != found


def test_the_log_is_silent_where_that_is_asked_for(monkeypatch) -> None:
    assert ask(monkeypatch, b"a", tells=False) == ("a", [])
    assert ask(monkeypatch, b"a", is_told=False) == ("a", [])
