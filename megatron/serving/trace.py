"""Each request has an id: in the header of its answer, in its JSON, and in the line of the log that says how it went.

A client, or a proxy before this server, names it in X-Request-Id; else it is made here.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megatron.logging import get_logger

logger = get_logger(__name__)

HEADER = "X-Request-Id"
WELL_FORMED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could forge a line of a log
GONE = 499  # what nobody reads any more


@dataclass
class Trace:
    """What is told of one request, filled in by whoever learns it."""

    id: str
    client: str  # its address, or its key by a name that does not tell it
    started: float = field(default_factory=time.monotonic)
    is_told: bool = False  # in the log
    status: int = 0  # of the answer, or of the error that ended its stream
    seconds_waited: float = 0.0  # for a row
    num_read: int = 0  # tokens
    num_written: int = 0

    def line(self) -> str:
        """Tell how it went."""
        seconds = time.monotonic() - self.started
        return (
            f"request {self.id} of {self.client}: {self.status}, waited {self.seconds_waited:.3f} s, tokens read "
            f"{self.num_read}, written {self.num_written}, {seconds:.3f} s in all"
        )


def trace_of(scope: Scope) -> Trace:
    """Give the trace of a request that came through `Tracing`."""
    trace = scope["state"]["trace"]
    assert isinstance(trace, Trace)
    return trace


class Tracing:
    """Gives requests their traces and answers their ids; the outermost layer, so that no answer lacks one."""

    def __init__(self, app: ASGIApp, *, tells: bool) -> None:
        """tells: write lines into the log."""
        self._app = app
        self._tells = tells

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        address = scope.get("client")
        trace = Trace(
            given if WELL_FORMED.fullmatch(given) else uuid.uuid4().hex,
            "somewhere" if address is None else address[0],
        )
        scope.setdefault("state", {})["trace"] = trace

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                MutableHeaders(scope=message)[HEADER] = trace.id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if trace.is_told and self._tells:
                logger.info("%s", trace.line())
