"""What is asked for and what is in work, on the server's side: admission, tickets, time limits, counts.

All of it belongs to the thread of the event loop; the worker's calls are handed over to it. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

from megatron.inference.request import Update
from megatron.serving.completion_call import CompletionCall, ServedModel
from megatron.serving.error import RequestError
from megatron.serving.metric import SECONDS, STEP_SECONDS, Counter, Histogram, gauge
from megatron.serving.options import ServingOptions
from megatron.serving.worker import Load, Worker

Outcome = Literal["ok", "refused", "busy", "cancelled", "timeout", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "busy", "cancelled", "timeout", "failed")
STALLED_SECONDS = 120.0  # in one step, after which the engine does not count as healthy
MAX_RETRY_SECONDS = 60


class ClientGone(Exception):
    """Whoever asked does not listen any more."""


class Ticket:
    """A call in work. `next` gives what has been written since."""

    def __init__(self, call: CompletionCall) -> None:
        self.call = call
        self.started = time.monotonic()
        self.written: float | None = None  # when the last token was
        self.begun: float | None = None  # when it got its first row
        self.left = {request.name: request.num_samples for request in call.requests}
        self.timer: asyncio.TimerHandle | None = None
        self._queue: asyncio.Queue[list[Update] | Exception] = asyncio.Queue()

    @property
    def seconds_waited(self) -> float:
        """How long it has waited for a row."""
        return (time.monotonic() if self.begun is None else self.begun) - self.started

    def give(self, what: list[Update] | Exception) -> None:
        self._queue.put_nowait(what)

    async def next(self) -> list[Update]:
        """Wait for what is written. Raises RequestError or ClientGone for a call that ended otherwise."""
        updates: list[Update] = []
        while not updates or not self._queue.empty():
            what = await self._queue.get()
            if isinstance(what, Exception):
                raise what
            updates += what
        return updates


class Counts:
    """What /metrics tells, but for what is counted when it is asked."""

    def __init__(self) -> None:
        name = "megatron_serving_"
        self.requests = Counter(
            f"{name}requests_total",
            "Completions that have ended, and all requests that were refused.",
            "outcome",
            OUTCOMES,
        )
        self.prompt_tokens = Counter(f"{name}prompt_tokens_total", "Tokens of accepted prompts.")
        self.tokens = Counter(f"{name}completion_tokens_total", "Tokens that were written.")
        self.failures = Counter(f"{name}engine_failures_total", "Steps of the engine that failed.")
        self.wait = Histogram(
            f"{name}wait_seconds", "From a request to its first row of the cache.", SECONDS
        )
        self.first_token = Histogram(
            f"{name}time_to_first_token_seconds", "From a request to its first token.", SECONDS
        )
        self.token = Histogram(
            f"{name}time_per_token_seconds",
            "Between two steps that add to a request.",
            STEP_SECONDS,
        )
        self.request = Histogram(
            f"{name}request_seconds",
            "From a request to its end, of those that ended well.",
            SECONDS,
        )

    def lines(self) -> Iterator[str]:
        """Give their text."""
        for one in vars(self).values():
            yield from one.lines()


class Service:
    """Calls in work, and the worker that does it. `attach` comes first."""

    def __init__(self, worker: Worker, model: ServedModel, options: ServingOptions) -> None:
        self.model = model
        self.options = options
        self.counts = Counts()
        self.has_failed = False
        self._worker = worker
        self._load = Load()
        self._tickets: dict[str, Ticket] = {}  # by the names of their requests
        # accepted and not finished, by client
        self._num_samples = collections.Counter[str]()
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_end: Callable[[], None] = lambda: None

    def attach(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]) -> None:
        """Say which loop this belongs to, and what to call when the worker has ended. Before the worker runs."""
        self._loop, self._on_end = loop, on_end

    # --------------------------------------------------------------------------- calls, in the loop's thread

    def submit(self, call: CompletionCall) -> Ticket:
        """Take a call into work, or raise RequestError: 429 if too many wait, 503 if the server ends."""
        if self._is_stopping or self.has_failed:
            raise RequestError("the server is stopping; ask again in a while", status=503)
        self._check_room(call)
        assert self._loop is not None
        ticket = Ticket(call)
        self._num_samples[call.client] += call.num_choices
        self.counts.prompt_tokens.add(call.num_prompt_tokens)
        for request in call.requests:
            self._tickets[request.name] = ticket
            self._worker.add(request)
        late = RequestError(
            f"not finished in {self.options.request_seconds:g} s, the limit of this server; ask for less",
            status=408,
            headers={"x-should-retry": "false"},
        )
        ticket.timer = self._loop.call_later(self.options.request_seconds, self.drop, ticket, late)
        return ticket

    def _check_room(self, call: CompletionCall) -> None:
        """Raise RequestError if too many samples wait, of this client or of all."""
        options, theirs = self.options, self._num_samples[call.client]
        in_all = self._num_samples.total()
        room = options.batch_size + options.queue_size - in_all
        room_for_client = options.client_size - theirs
        if call.num_choices <= min(room, room_for_client):
            return
        if room_for_client <= room:
            what = f"{theirs} samples of yours are in work, of the {options.client_size} of one client,"
        else:
            what = f"{in_all} samples are in work"
        seconds = self._seconds_of_a_request()
        raise RequestError(
            f"{what} and there is room for {max(min(room, room_for_client), 0)} more; ask again in {seconds} s",
            status=429,
            headers={"Retry-After": str(seconds)},
        )

    def _finish(self, ticket: Ticket, num_samples: int) -> None:
        """Give the places of samples back; nothing is kept of a client without any."""
        client = ticket.call.client
        self._num_samples[client] -= num_samples
        if not self._num_samples[client]:
            del self._num_samples[client]

    def drop(self, ticket: Ticket, why: Exception | None = None) -> None:
        """End a call, which frees its rows at once; whoever waits for it gets why. Nothing, if it has ended."""
        if ticket.timer is not None:
            ticket.timer.cancel()
        if why is not None and ticket.left:
            ticket.give(why)
        for name, num_samples in ticket.left.items():
            if self._tickets.pop(name, None) is not None:
                self._worker.cancel(name)
                self._finish(ticket, num_samples)
        ticket.left = {}

    def stop(self) -> None:
        """Accept nothing more."""
        self._is_stopping = True

    def drop_all(self, message: str) -> None:
        """End all that is in work."""
        for ticket in set(self._tickets.values()):
            self.drop(ticket, RequestError(message, status=503))

    def health(self) -> tuple[bool, dict[str, str | int]]:
        """Say whether requests are answered, and what there is to do."""
        if self.has_failed:
            status = "failed"
        elif self._is_stopping:
            status = "stopping"
        elif self._worker.seconds_in_step > STALLED_SECONDS:
            status = "stalled"
        else:
            status = "ok"
        return status == "ok", {
            "status": status,
            "rows_in_use": self._load.num_rows,
            "waiting": self._load.num_waiting,
            "engine_failures": self.counts.failures.numbers[""],
        }

    def metrics(self) -> str:
        """Give the text for Prometheus."""
        lines = [*self.counts.lines()]
        for name, what, number in (
            ("rows_in_use", "Rows of the cache in use.", self._load.num_rows),
            ("rows", "Rows that there may be.", self.options.batch_size),
            ("waiting", "Samples that have no row yet.", self._load.num_waiting),
            ("samples", "Samples accepted and not finished.", self._num_samples.total()),
            ("clients", "Clients whose samples these are.", len(self._num_samples)),
        ):
            lines += gauge(f"megatron_serving_{name}", what, number)
        return "\n".join(lines) + "\n"

    def _seconds_of_a_request(self) -> int:
        times = self.counts.request
        mean = times.sum / times.count if times.count else 1.0
        return min(max(math.ceil(mean), 1), MAX_RETRY_SECONDS)

    def _take(self, updates: list[Update], load: Load) -> None:
        """Hand out what a step wrote."""
        self._load = load
        now = time.monotonic()
        for name in load.begun:
            begun = self._tickets.get(name)
            if begun is not None and begun.begun is None:
                begun.begun = max(load.since, begun.started)
                self.counts.wait.add(begun.seconds_waited)
        parts: dict[Ticket, list[Update]] = {}
        for update in updates:
            ticket = self._tickets.get(update.request)
            if ticket is None:
                continue  # dropped while the step was done
            parts.setdefault(ticket, []).append(update)
            if update.completion is not None:
                self._finish(ticket, 1)
                ticket.left[update.request] -= 1
                if not ticket.left[update.request]:
                    del ticket.left[update.request], self._tickets[update.request]
        for ticket, part in parts.items():
            if ticket.written is None:
                self.counts.first_token.add(now - ticket.started)
            else:
                self.counts.token.add(now - ticket.written)
            ticket.written = now
            if ticket.call.max_tokens:
                self.counts.tokens.add(sum(update.token is not None for update in part))
            if not ticket.left:
                self.counts.request.add(now - ticket.started)
            ticket.give(part)

    def _fail(self, names: set[str], message: str) -> None:
        self.counts.failures.add()
        for ticket in {self._tickets[name] for name in names if name in self._tickets}:
            self.drop(ticket, RequestError(message, status=500))

    def _end(self, is_failure: bool) -> None:
        self.has_failed |= is_failure
        if is_failure:
            self.drop_all("the server has failed; its log says why")
        self._on_end()

    # ------------------------------------------------------------------------------- the worker's, in its thread

    def wrote(self, updates: list[Update], load: Load) -> None:
        if updates or load != self._load:
            self._hand_over(self._take, updates, load)

    def failed(self, names: set[str], message: str) -> None:
        if names:
            self._hand_over(self._fail, names, message)

    def ended(self, *, is_failure: bool) -> None:
        self._hand_over(self._end, is_failure)

    def _hand_over(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *args)
