"""The routes: OpenAI's completions and models, health, metrics, the playground. What is asked is checked elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.to_thread
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from megatron.attribution.review import Reviewer
from megatron.inference.request import Update
from megatron.serving.completion_answer import Answer
from megatron.serving.completion_call import read_call
from megatron.serving.error import RequestError
from megatron.serving.guard import BrowserGuard, KeyGuard, error_response, read_body
from megatron.serving.playground import Playground, page, playground_routes
from megatron.serving.review import Reviews
from megatron.serving.service import ClientGone, Outcome, Service, Ticket
from megatron.serving.trace import GONE, Trace, Tracing, trace_of

HINTS = {
    404: "there is nothing at this address; POST /v1/completions writes text, GET /v1/models names the model, "
    "/health and /metrics tell how it goes. There is no chat: the model continues text and fills in",
    405: "this address knows another method; POST /v1/completions, GET all else",
}
NUM_READERS = 2  # bodies that are parsed and encoded at once, beside the event loop


def app(
    service: Service,
    keys: Sequence[bytes] = (),
    playground: Playground | None = None,
    reviewer: Reviewer | None = None,
) -> ASGIApp:
    """Assemble the server's application.

    keys: of clients; none: everybody may ask. reviewer: looks up what is written in the training data.
    """
    key_guard = Middleware(KeyGuard, keys=keys)

    def guarded(path: str, routes: Sequence[BaseRoute]) -> Mount:
        # a redirection to or from a slash would send clients where their Host says
        router = Router(routes, redirect_slashes=False)
        return Mount(path, app=router, middleware=[key_guard])

    routes: list[BaseRoute] = [
        Route("/health", _health(service)),
        Route("/metrics", _metrics(service), middleware=[key_guard]),
        guarded(
            "/v1",
            [
                Route("/completions", _completions(service, reviewer), methods=["POST"]),
                Route("/models", _models(service)),
                Route("/models/{name:path}", _models(service)),
            ],
        ),
    ]
    if playground is not None:
        routes += [
            guarded("/playground", playground_routes(playground, service.options)),
            page(),
        ]

    async def on_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        service.counts.requests.add(value=_outcome(error))
        return error_response(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = HINTS.get(error.status_code, error.detail)
        refusal = RequestError(message, status=error.status_code, headers=error.headers)
        return await on_error(request, refusal)

    async def on_gone(_request: Request, _error: Exception) -> Response:
        service.counts.requests.add(value="cancelled")
        return Response(status_code=GONE)

    async def on_bug(_request: Request, _error: Exception) -> Response:
        service.counts.requests.add(value="failed")
        return error_response(RequestError("a bug of this server; its log says more", status=500))

    application = Starlette(
        routes=routes,
        middleware=[Middleware(BrowserGuard, is_local=service.options.is_local)],
        exception_handlers={
            RequestError: on_error,
            HTTPException: on_http_error,
            ClientGone: on_gone,
            Exception: on_bug,
        },
    )
    application.router.redirect_slashes = False
    return Tracing(application, tells=not service.options.quiet)


Endpoint = Callable[[Request], Awaitable[Response]]


def _health(service: Service) -> Endpoint:
    async def health(_request: Request) -> Response:
        is_well, values = service.health()
        return JSONResponse(values, 200 if is_well else 503)

    return health


def _metrics(service: Service) -> Endpoint:
    async def metrics(_request: Request) -> Response:
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    return metrics


def _models(service: Service) -> Endpoint:
    card = {
        "id": service.model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "megatron",
        "max_model_len": service.model.num_positions,
    }

    async def models(request: Request) -> Response:
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [card]})
        if name != service.model.name:
            message = f"here is {service.model.name!r} only"
            raise RequestError(message, status=404, code="model_not_found")
        return JSONResponse(card)

    return models


def _completions(service: Service, reviewer: Reviewer | None) -> Endpoint:
    options, model = service.options, service.model
    readers = anyio.CapacityLimiter(NUM_READERS)
    turns = weakref.WeakValueDictionary[str, asyncio.Lock]()  # a client has one body read at once

    async def completions(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.is_told = True
        body = await read_body(request, options.max_body_bytes, options.body_seconds)
        # no two in work have one name, whatever clients say
        read = functools.partial(read_call, body, uuid.uuid4().hex, trace.client, model)
        turn = turns.setdefault(trace.client, asyncio.Lock())
        async with turn:
            call = await anyio.to_thread.run_sync(read, limiter=readers)
        answer = Answer(f"cmpl-{trace.id}", model.name, call, model.tokenizer)
        reviews = Reviews(reviewer, answer)
        work = _Work(service, service.submit(call), answer, trace, request)
        with contextlib.ExitStack() as stack:
            stack.callback(work.end)
            if call.streams:
                # the first part is waited for here: what fails before it is an error with its own status
                stream = _Stream(work, answer, reviews, await work.next())
                stack.pop_all()  # the stream ends it
                return stream
            while not answer.is_complete:
                for update in await work.next():
                    answer.add(update)
        values = await reviews.whole()
        service.counts.requests.add(value="ok")
        return Response(orjson.dumps(values), media_type="application/json")

    return completions


class _Work:
    """A call in work for a client, until one of the two ends it."""

    def __init__(
        self, service: Service, ticket: Ticket, answer: Answer, trace: Trace, request: Request
    ) -> None:
        self.service = service
        self.trace = trace
        self._ticket = ticket
        self._answer = answer
        self.next = ticket.next
        trace.num_read = ticket.call.num_prompt_tokens
        self._watch = asyncio.create_task(self._wait_for_client(request))

    async def _wait_for_client(self, request: Request) -> None:
        """End the call when its client leaves."""
        while (await request.receive())["type"] != "http.disconnect":
            continue
        self.service.drop(self._ticket, ClientGone())

    def end(self) -> None:
        """Leave nothing behind, wherever the call is."""
        self._watch.cancel()
        self.service.drop(self._ticket)
        self.trace.seconds_waited = self._ticket.seconds_waited
        self.trace.num_written = self._answer.num_tokens


class _Stream(Response):
    """Server-sent events: a chunk for each token, and [DONE]."""

    media_type = "text/event-stream"

    def __init__(
        self, work: _Work, answer: Answer, reviews: Reviews, updates: list[Update]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work = work
        self._answer = answer
        self._reviews = reviews
        self._updates = updates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome: Outcome = "failed"
        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            await self._send_chunks(send)
            outcome = "ok"
        except RequestError as error:
            outcome = _outcome(error)
            self._work.trace.status = error.status
            await _send_part(send, _event(error.to_json()), more_body=False)
        except ClientGone:
            outcome = "cancelled"
        except asyncio.CancelledError:  # uvicorn waits no longer
            outcome = "cancelled"
            raise
        finally:
            self._work.end()
            self._work.service.counts.requests.add(value=outcome)
            if outcome == "cancelled":
                self._work.trace.status = GONE

    async def _send_chunks(self, send: Send) -> None:
        answer, updates = self._answer, self._updates
        while True:
            for update in updates:
                answer.add(update)
            events = b"".join(map(_event, await self._reviews.chunks(updates)))
            if answer.is_complete:
                break
            if events:
                await _send_part(send, events, more_body=True)
            updates = await self._work.next()
        if answer.gives_usage:
            events += _event(answer.usage_chunk())
        await _send_part(send, events + b"data: [DONE]\n\n", more_body=False)


async def _send_part(send: Send, body: bytes, *, more_body: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


def _event(values: object) -> bytes:
    return b"data: " + orjson.dumps(values) + b"\n\n"


def _outcome(error: RequestError) -> Outcome:
    if error.status >= 500:
        return "failed"
    return {429: "busy", 408: "timeout"}.get(error.status, "refused")  # type: ignore[return-value]
