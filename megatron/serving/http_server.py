"""uvicorn with limits on connections, and an end by signals that loses no answer it can give.

uvicorn bounds neither how long headers take nor how long a client may leave an answer unread, and after a signal it
ends by that signal. A request's own limits are those of `megatron.serving.app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from threading import Thread

import anyio
import torch
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from megatron.cli import EXIT_FAILURE, EXIT_LOST_PEER, leave_at_once
from megatron.errors import ConfigError
from megatron.logging import get_logger
from megatron.serving.options import ServingOptions
from megatron.serving.service import Service
from megatron.serving.worker import Worker

logger = get_logger(__name__)

# for answers to leave after the requests behind them were ended, and for a step to end
LAST_SECONDS = 5.0
SAME_SIGNAL_SECONDS = 2.0  # a launcher hands on what systemd or Slurm sends to its processes, too
RESET = struct.pack("ii", 1, 0)  # linger for 0 s
FULL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def bind(options: ServingOptions) -> socket.socket:
    """Take the address, before a model is loaded; nobody can connect yet. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(
            options.host.strip("[]"), options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise _not_listened_at(options, error) from None
    return listener


def _not_listened_at(options: ServingOptions, error: OSError) -> ConfigError:
    return ConfigError(
        f"--host {options.host} --port {options.port} cannot be listened at: {error.strerror or error}; give another "
        f"one (--port 0: any that is free)"
    )


def serve(
    application: ASGIApp,
    service: Service,
    worker: Worker,
    listener: socket.socket,
    device: torch.device,
) -> int:
    """Serve until a signal or a failure; give the exit code."""
    return asyncio.run(_Serving(application, service, worker, listener, device).run())


class _Serving:
    """One server: the worker's thread, uvicorn in this one, and how they end."""

    def __init__(
        self,
        application: ASGIApp,
        service: Service,
        worker: Worker,
        listener: socket.socket,
        device: torch.device,
    ) -> None:
        self._service = service
        self._worker = worker
        self._listener = listener
        self._device = device
        self._server = _Server(application, service.options, self._say_where)
        self._asked_at: float | None = None  # by a signal to end
        self._worker_ended = asyncio.Event()

    async def run(self) -> int:
        """Serve to the end. Signals are taken over for as long."""
        loop = asyncio.get_running_loop()
        self._service.attach(loop, self._on_worker_end)
        thread = Thread(
            target=self._worker.run, args=(self._service, self._device), name="engine", daemon=True
        )
        thread.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            await self._end_worker(thread)
        if self._worker.has_lost_peer:
            return EXIT_LOST_PEER
        return EXIT_FAILURE if self._service.has_failed else 0

    async def _end_worker(self, thread: Thread) -> None:
        """Let the step that is being done end, but not for long: a device, or another process, may keep it for ever."""
        self._worker.end()
        with anyio.move_on_after(LAST_SECONDS):
            await self._worker_ended.wait()
        if not self._worker_ended.is_set():
            logger.error("a step of the engine does not end: left without waiting for it")
            leave_at_once(EXIT_FAILURE)
        thread.join()  # it has said its last word

    def _say_where(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        name = self._service.model.name
        address = f"http://{shown}:{port}"
        print(f"serving {name} at {address}/v1, a page to write on at {address}/", file=sys.stderr)
        sys.stderr.flush()

    def _on_signal(self, number: int) -> None:
        """Let requests in work end at the first signal; end them at the second."""
        loop = asyncio.get_running_loop()
        if self._asked_at is not None:
            if loop.time() - self._asked_at > SAME_SIGNAL_SECONDS:
                self._drop_all()
            return
        self._asked_at = loop.time()
        grace = self._service.options.grace
        logger.info(
            "%s: no new requests, %g s for those in work; again: end them at once",
            signal.Signals(number).name,
            grace,
        )
        self._leave()
        loop.call_later(grace, self._drop_all)

    def _on_worker_end(self) -> None:
        self._worker_ended.set()
        self._leave()

    def _leave(self) -> None:
        self._service.stop()
        self._server.should_exit = True

    def _drop_all(self) -> None:
        self._service.drop_all("the server is stopping; ask again in a while")


class _Server(uvicorn.Server):
    """uvicorn that leaves signals to whoever runs it, and tells when clients can connect."""

    def __init__(
        self, application: ASGIApp, options: ServingOptions, on_start: Callable[[], None]
    ) -> None:
        super().__init__(_config(application, options))
        self._options = options
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another server took the address while this one loaded its model
            raise _not_listened_at(self._options, error) from None
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(application: ASGIApp, options: ServingOptions) -> uvicorn.Config:
    handlers = logging.getLogger("megatron").handlers
    for name in ("uvicorn", "uvicorn.error"):
        theirs = logging.getLogger(name)
        theirs.handlers, theirs.propagate = (
            list(handlers) if name == "uvicorn" else [],
            name != "uvicorn",
        )
        theirs.setLevel(logging.ERROR)  # a warning a hostile request fills a disk
    return uvicorn.Config(
        application,
        http=_connection(options),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        forwarded_allow_ips="127.0.0.1",  # a proxy on this machine says for whom it asks
        server_header=False,
        timeout_keep_alive=max(int(options.header_seconds), 1),
        timeout_graceful_shutdown=int(options.grace + LAST_SECONDS) + 1,
        backlog=options.max_connections,
    )


def _connection(options: ServingOptions) -> type[H11Protocol]:
    """Make uvicorn's class of a connection, with our limits."""

    class Connection(H11Protocol):
        """A client."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self._timers: dict[str, asyncio.TimerHandle] = {}
            super().connection_made(transport)
            if len(self.connections) > options.max_connections:
                transport.write(FULL)
                transport.close()
            self._wait("headers", options.header_seconds)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._wait("headers", None)

        def connection_lost(self, exc: Exception | None) -> None:
            for what in list(self._timers):
                self._wait(what, None)
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # and no other request was waiting behind it
                self._wait("headers", options.header_seconds)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait("reader", options.stall_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._wait("reader", None)

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.abort()  # an answer is under way: there is no place for another
                return
            super().send_400_response(msg)
            self._wait("headers", options.header_seconds)

        def _wait(self, what: str, seconds: float | None) -> None:
            """Cut the connection if something does not happen in so many seconds; None: it happened."""
            timer = self._timers.pop(what, None)
            if timer is not None:
                timer.cancel()
            if seconds is not None:
                self._timers[what] = self.loop.call_later(seconds, self._cut)

        def _cut(self) -> None:
            """End the connection; with a reset, if an answer lies there unread, which the system would keep on sending."""
            if self.transport.get_write_buffer_size():
                connection = self.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()

    return Connection
