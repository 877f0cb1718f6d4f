"""Worker and service without HTTP: a step that fails, time limits, what other processes are told, metrics."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from threading import Event, Thread

import pytest
import torch

pytest.importorskip("uvicorn", reason="needs uvicorn: requirements.txt")
from starlette.applications import Starlette

from megatron.errors import ConfigError
from megatron.inference.options import SamplingOptions
from megatron.inference.request import Completion, Request, Update
from megatron.parallel.launch import Launch
from megatron.serving import app as app_module
from megatron.serving import http_server
from megatron.serving import service as service_module
from megatron.serving.channel import Channel, Orders
from megatron.serving.completion_call import CompletionCall, ServedModel
from megatron.serving.error import RequestError
from megatron.serving.http_server import bind
from megatron.serving.metric import Histogram
from megatron.serving.options import ServingOptions
from megatron.serving.service import ClientGone, Service, Ticket
from megatron.serving.worker import MAX_FAILURES, Worker


class FakeEngine:
    """Writes a token a step to each request, at the pace of whoever lets it; fails when a prompt says so."""

    num_waiting = 0

    def __init__(self, gate: Event | None = None) -> None:
        """gate: which prompt 15 waits for."""
        self.requests: dict[str, list] = {}
        self._gate = gate or Event()

    @property
    def is_idle(self) -> bool:
        return not self.requests

    @property
    def num_rows_in_use(self) -> int:
        return len(self.requests)

    def add(self, request: Request) -> None:
        self.requests[request.name] = [request, 0]

    def cancel(self, name: str) -> None:
        self.requests.pop(name, None)

    def take_begun(self) -> list[str]:
        return [name for name, (_, num_tokens) in self.requests.items() if num_tokens == 1]

    def step(self) -> list[Update]:
        updates = []
        for name, work in list(self.requests.items()):
            request, _ = work
            if request.prompt == (13,):
                raise torch.OutOfMemoryError("no memory left")
            if request.prompt == (14,):
                raise KeyError("a bug")
            if request.prompt == (15,):
                assert self._gate.wait(60)
            work[1] += 1
            completion = None
            if work[1] == request.options.max_new_tokens:
                completion = Completion(name, 0, "a" * work[1], (1,) * work[1], "length", 1)
                del self.requests[name]
            updates.append(Update(name, 0, "a", 1, completion))
        return updates


def call(name: str, prompt: int = 1, max_tokens: int = 3, client: str = "") -> CompletionCall:
    options = SamplingOptions(max_new_tokens=max_tokens)
    request = Request(name, (prompt,), options, client=client)
    return CompletionCall((request,), 1, max_tokens, None, False, False, False)


def serve(
    check: Callable[[Service], Awaitable[None]], gate: Event | None = None, **options
) -> tuple[Service, int]:
    """Run a check beside a worker; give the service, and how many engines there were."""
    engines = []

    def make_engine() -> FakeEngine:
        engines.append(FakeEngine(gate))
        return engines[-1]

    worker = Worker(make_engine, Channel(Launch()))
    model = ServedModel("tiny", None, 64, 6, 200)
    service = Service(worker, model, ServingOptions(**options))

    async def run() -> None:
        ended = asyncio.Event()
        service.attach(asyncio.get_running_loop(), ended.set)
        thread = Thread(target=worker.run, args=(service, torch.device("cpu")))
        thread.start()
        try:
            await asyncio.wait_for(check(service), 60)
        finally:
            worker.end()
            thread.join()
            await ended.wait()

    asyncio.run(run())
    return service, len(engines)


async def finish(service: Service, call: CompletionCall) -> str:
    ticket = service.submit(call)
    text = ""
    while ticket.left or not text:
        text += "".join(update.text for update in await ticket.next())
    return text


def test_a_step_that_fails_takes_its_requests_only() -> None:
    async def check(service: Service) -> None:
        for number in range(MAX_FAILURES + 1):
            with pytest.raises(RequestError, match="OutOfMemoryError: no memory left") as failure:
                await finish(service, call(f"bad{number}", 13))
            assert failure.value.status == 500
            assert await finish(service, call(f"good{number}")) == "aaa"
            assert service.health()[0]
        assert service.health()[1]["engine_failures"] == MAX_FAILURES + 1

    service, num_engines = serve(check)
    assert num_engines == MAX_FAILURES + 2 and not service.has_failed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("prompt, num_failures", [(13, MAX_FAILURES), (14, 1)])
def test_failures_without_end_and_bugs_end_the_server(prompt: int, num_failures: int) -> None:
    async def check(service: Service) -> None:
        for number in range(num_failures):
            with pytest.raises(RequestError) as failure:
                await finish(service, call(str(number), prompt))
            assert failure.value.status == 500
        while not service.has_failed:
            await asyncio.sleep(0)
        assert service.health() == (False, service.health()[1] | {"status": "failed"})
        with pytest.raises(RequestError, match="stopping") as refusal:
            service.submit(call("late"))
        assert refusal.value.status == 503

    serve(check)


def test_a_step_that_takes_too_long_shows_in_the_health(monkeypatch) -> None:
    monkeypatch.setattr(service_module, "STALLED_SECONDS", 0.05)
    gate = Event()

    async def check(service: Service) -> None:
        assert service.health() == (True, service.health()[1] | {"status": "ok"})
        ticket = service.submit(call("slow", 15, max_tokens=1))
        while service.health()[0]:
            await asyncio.sleep(0)
        assert service.health()[1]["status"] == "stalled"
        gate.set()
        assert [update.text for update in await ticket.next()] == ["a"]
        while not service.health()[0]:
            await asyncio.sleep(0)

    serve(check, gate)


def test_a_request_ends_at_its_time_limit_and_its_rows_are_free() -> None:
    async def check(service: Service) -> None:
        with pytest.raises(RequestError, match=r"not finished in 1 s") as late:
            await finish(service, call("slow", max_tokens=10**9))
        assert late.value.status == 408 and late.value.headers == {"x-should-retry": "false"}
        while service.health()[1]["rows_in_use"]:
            await asyncio.sleep(0)
        assert await finish(service, call("next")) == "aaa"

    serve(check, request_seconds=1.0)


def test_a_call_that_is_dropped_says_why_once_and_gives_back_its_place() -> None:
    async def check(service: Service) -> None:
        for number in range(5):
            ticket = service.submit(call(str(number), max_tokens=10**9))
            with pytest.raises(RequestError, match="room for 0 more"):
                service.submit(call("more"))
            service.drop(ticket, ClientGone())
            service.drop(ticket)
            with pytest.raises(ClientGone):
                while True:
                    await ticket.next()

    serve(check, batch_size=1, queue_size=0)


def test_what_one_client_waits_for_leaves_room_for_others() -> None:
    async def check(service: Service) -> None:
        def submit(name: str) -> Ticket:
            return service.submit(call(name, max_tokens=10**9, client=name[0]))

        tickets = [submit(name) for name in ("a1", "a2", "a3")]
        with pytest.raises(RequestError, match="3 samples of yours are in work") as refusal:
            submit("a4")
        assert refusal.value.status == 429 and refusal.value.headers == {"Retry-After": "1"}
        tickets += [submit(name) for name in ("b1", "b2")]
        with pytest.raises(RequestError, match="5 samples are in work and there is room for 0"):
            submit("c1")
        for ticket in tickets:
            service.drop(ticket)
        assert "megatron_serving_clients 0" in service.metrics()
        service.drop(submit("a4"))

    serve(check, batch_size=1, queue_size=4, client_queue_size=2)


def test_a_client_with_many_bodies_does_not_keep_another_from_being_read(monkeypatch) -> None:
    gate, is_reading = Event(), Event()

    def read_call(_body: bytes, _name: str, client: str, _model: ServedModel) -> CompletionCall:
        is_greedy = client.endswith(hashlib.sha256(b"greedy").hexdigest()[:8])
        is_reading.set()
        assert not is_greedy or gate.wait(60)
        raise RequestError("read")

    monkeypatch.setattr(app_module, "read_call", read_call)

    async def check(service: Service) -> None:
        application = app_module.app(service)

        async def receive() -> dict:
            return {"type": "http.request", "body": b"{}"}

        async def ask(key: str) -> bytes:
            headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
            place = {"path": "/v1/completions", "root_path": "", "query_string": b""}
            scope = {"type": "http", "method": "POST", "headers": headers, **place}
            bodies = []

            async def send(message: dict) -> None:
                bodies.append(message.get("body", b""))

            await application(scope, receive, send)
            return b"".join(bodies)

        greedy = [asyncio.create_task(ask("greedy")) for _ in range(9)]
        while not is_reading.is_set():
            await asyncio.sleep(0)
        assert b'"read"' in await ask("modest")
        assert not any(task.done() for task in greedy)
        gate.set()
        assert all(b'"read"' in body for body in await asyncio.gather(*greedy))

    serve(check)


def test_how_long_a_call_waits_ends_with_its_first_row() -> None:
    async def check(service: Service) -> None:
        ticket = service.submit(call("quick"))
        assert ticket.begun is None and ticket.seconds_waited >= 0
        while ticket.begun is None:
            await asyncio.sleep(0)
        assert 0 <= ticket.seconds_waited == ticket.begun - ticket.started
        while ticket.left:
            await asyncio.sleep(0)
        assert "megatron_serving_wait_seconds_count 1" in service.metrics()

    serve(check)


def test_a_call_that_has_ended_is_not_late() -> None:
    async def check(service: Service) -> None:
        ticket = service.submit(call("quick"))
        while ticket.left:
            await asyncio.sleep(0)
        service.drop(ticket, RequestError("late", status=408))  # before anyone has read it
        assert "".join(update.text for update in await ticket.next()) == "aaa"

    serve(check)


def test_an_address_that_was_taken_while_a_model_was_loaded_is_named() -> None:
    first = bind(ServingOptions(port=0))
    options = ServingOptions(port=first.getsockname()[1])
    with first, bind(options) as second:  # both may: nobody listens yet
        first.listen()
        worker = Worker(FakeEngine, Channel(Launch()))
        service = Service(worker, ServedModel("tiny", None, 64, 6, 200), options)
        with pytest.raises(ConfigError, match=f"--port {options.port} cannot be listened at"):
            http_server.serve(Starlette(), service, worker, second, torch.device("cpu"))


def test_orders_are_the_same_on_the_other_side() -> None:
    options = SamplingOptions(
        max_new_tokens=7, temperature=0.1 + 0.2, seed=-(2**63), stop=("\n\n", "é"), logprobs=3
    )
    request = Request("a", (5, 0, 279), options, 4, frozenset({1, 2}), "key 2")
    for orders in (Orders(), Orders((request,), ("b", "a")), Orders(is_end=True)):
        assert Orders.from_bytes(orders.to_bytes()) == orders
    assert Orders().to_bytes() == b""  # what is told at every step


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram("x_seconds", "What.", (0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.add(seconds)
    numbers = re.findall(r'le="(.*)"} (\d)', "\n".join(histogram.lines()))
    assert numbers == [("0.1", "2"), ("1.0", "3"), ("+Inf", "4")]
    assert "x_seconds_sum 7.65" in "\n".join(histogram.lines())
