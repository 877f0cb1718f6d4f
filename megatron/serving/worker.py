"""The thread that owns the engine, and the loop of the processes that follow it.

Each round takes what has been asked for meanwhile, tells the other processes, does a step, and hands what was written
to the server's thread. A step that fails takes its requests with it: a process alone then goes on with a new cache, unless
that happens again and again; where several share the model they are out of step, and all end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from megatron.errors import LostPeer, MegatronError
from megatron.inference.engine import Engine
from megatron.inference.request import Request, Update
from megatron.logging import get_logger
from megatron.parallel.lost_peer import losses_named
from megatron.serving.channel import Channel, Orders

logger = get_logger(__name__)

MAX_FAILURES = 3  # one after another, with no request finished between


@dataclass(frozen=True)
class Load:
    """How much an engine has to do."""

    num_rows: int = 0  # in use
    num_waiting: int = 0  # samples that have none
    begun: tuple[str, ...] = ()  # requests that got their first row in the step
    since: float = field(default=0.0, compare=False)  # when the step began


class Listener(Protocol):
    """Who hears from the worker. Called in the worker's thread."""

    def wrote(self, updates: list[Update], load: Load) -> None: ...

    def failed(self, names: set[str], message: str) -> None:
        """Requests that nobody works on any more."""

    def ended(self, *, is_failure: bool) -> None:
        """The worker will do nothing more."""


def advance(engine: Engine, orders: Orders) -> list[Update]:
    """Take orders and do a step. Collective over all processes."""
    for request in orders.added:
        engine.add(request)
    for name in orders.cancelled:
        engine.cancel(name)
    return [] if engine.is_idle else engine.step()


def follow(engine: Engine, channel: Channel) -> None:
    """Do what the first process does, to its end. Collective over all processes. Raises LostPeer."""
    with losses_named():
        while not (orders := channel.hear()).is_end:
            advance(engine, orders)


class Worker:
    """Give it requests from one thread; `run` is another."""

    def __init__(self, make_engine: Callable[[], Engine], channel: Channel) -> None:
        """make_engine: makes one with an empty cache, at the start and after a failure."""
        self._make_engine = make_engine
        self._channel = channel
        self._engine = make_engine()
        self._condition = threading.Condition()
        self._added: deque[Request] = deque()
        self._cancelled: deque[str] = deque()
        self._is_ending = False
        self.has_lost_peer = False
        self._samples: dict[str, int] = {}  # requests that the engine has, and how many are left
        self._num_failures = 0
        self._stepping_since: float | None = None

    @property
    def seconds_in_step(self) -> float:
        """How long the step that is being done has taken; 0 between steps."""
        since = self._stepping_since
        return 0.0 if since is None else time.monotonic() - since

    def add(self, request: Request) -> None:
        """Take a request that was checked."""
        with self._condition:
            self._added.append(request)
            self._condition.notify()

    def cancel(self, name: str) -> None:
        """End a request, if it is in work: nothing more is heard of it."""
        with self._condition:
            self._cancelled.append(name)
            self._condition.notify()

    def end(self) -> None:
        """Let `run` return after its step."""
        with self._condition:
            self._is_ending = True
            self._condition.notify()

    def run(self, listener: Listener, device: torch.device) -> None:
        """Work until told to end. Collective over all processes."""
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        is_failure = True
        try:
            with losses_named():
                self._run(listener)
            is_failure = False
        except LostPeer as error:
            self.has_lost_peer = True
            logger.error("%s", error)
        finally:
            # also when a bug ends this thread: nobody is left waiting
            listener.failed(set(self._samples), "the server has failed; its log says why")
            listener.ended(is_failure=is_failure)

    def _run(self, listener: Listener) -> None:
        while True:
            orders = self._take()
            self._channel.tell(orders)
            if orders.is_end:
                return
            self._samples |= {request.name: request.num_samples for request in orders.added}
            for name in orders.cancelled:
                self._samples.pop(name, None)
            self._stepping_since = since = time.monotonic()
            try:
                updates = advance(self._engine, orders)
            except (RuntimeError, MegatronError) as error:
                self._num_failures += 1
                if self._channel.heartbeat_seconds or self._num_failures == MAX_FAILURES:
                    raise
                reason = f"{type(error).__name__}: {error}"
                logger.exception("a step failed, and %d requests with it", len(self._samples))
            else:
                self._stepping_since = None
                self._hand_on(updates, since, listener)
                continue
            # behind the handler, which keeps what lies in its frames from being freed
            listener.failed(set(self._samples), f"the engine failed ({reason:.200})")
            self._samples = {}
            self._renew()
            self._stepping_since = None
            listener.wrote([], Load())

    def _renew(self) -> None:
        """Make an engine with an empty cache, the old one gone."""
        del self._engine
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._engine = self._make_engine()

    def _hand_on(self, updates: list[Update], since: float, listener: Listener) -> None:
        for update in updates:
            if update.completion is None:
                continue
            self._samples[update.request] -= 1
            if not self._samples[update.request]:
                del self._samples[update.request]
                self._num_failures = 0
        engine, begun = self._engine, tuple(self._engine.take_begun())
        listener.wrote(updates, Load(engine.num_rows_in_use, engine.num_waiting, begun, since))

    def _take(self) -> Orders:
        """Give what was asked for since the last call; wait for it if there is nothing else to do."""
        with self._condition:
            if self._engine.is_idle and not (self._added or self._cancelled or self._is_ending):
                self._condition.wait(self._channel.heartbeat_seconds)
            orders = Orders(tuple(self._added), tuple(self._cancelled), self._is_ending)
            self._added.clear()
            self._cancelled.clear()
        return orders
