"""`map` over processes: results in the order of the tasks, a bounded number of them in memory.

Unlike multiprocessing.Pool it does not read all tasks ahead, a worker that is killed ends the map with an error
instead of leaving it waiting, arrays travel as raw bytes, and a worker fetches its next task while it works on one.
Knows nothing of what is mapped.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, TypeVar

from megatron.errors import DataError, MegatronError

Task = TypeVar("Task")

AHEAD = 4  # results that may wait for an earlier one, for each worker
TASKS_AT_WORKER = 2  # one that is worked on and one that is fetched
SIZE = struct.Struct("<Q")


class Workers:
    """Processes that apply one function; as a context manager they end with it.

    They are forked at once, so `function` and what it holds are shared, not copied, and files that the caller opens
    later are not held by them. A MegatronError in a worker is raised in the caller in its turn; any other exception
    ends the worker with its traceback, and the map with an error. A worker ends when its caller does.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        num_workers: int,
        *,
        fetch: Callable[[Any], Any] = lambda task: task,
    ) -> None:
        """Start the workers; each applies `fetch` to its next task in a thread while it works on one."""
        context = multiprocessing.get_context("fork")
        self._sockets: list[socket.socket] = []
        self._processes = []
        for _ in range(num_workers):
            ours, theirs = socket.socketpair()
            self._sockets.append(ours)
            process = context.Process(
                target=_serve, args=(function, fetch, theirs, list(self._sockets)), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connection in self._sockets:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Give function(fetch(task)) for every task, in order. May be called once."""
        source = iter(tasks)
        at_worker: dict[socket.socket, list[int]] = {worker: [] for worker in self._sockets}
        finished: dict[int, tuple[bool, Any]] = {}
        num_sent = num_given = 0
        has_more = True
        while True:
            while has_more and num_sent < num_given + AHEAD * len(at_worker):
                worker = min(at_worker, key=lambda worker: len(at_worker[worker]))
                if len(at_worker[worker]) == TASKS_AT_WORKER:
                    break
                try:
                    task = next(source)
                except StopIteration:
                    has_more = False
                    break
                _exchange(_send, worker, task)
                at_worker[worker].append(num_sent)
                num_sent += 1
            if num_given in finished:
                is_ok, value = finished.pop(num_given)
                if not is_ok:
                    raise value
                yield value
                num_given += 1
            elif num_given == num_sent:
                return
            else:
                busy = [worker for worker, numbers in at_worker.items() if numbers]
                for ready in wait(busy):
                    assert isinstance(ready, socket.socket)
                    finished[at_worker[ready].pop(0)] = _exchange(_receive, ready)


def in_thread(items: Iterable[Task], num_ahead: int) -> Generator[Task, None, None]:
    """Give the items, which a thread fetches up to num_ahead before they are asked for."""
    source, end = iter(items), object()
    executor = ThreadPoolExecutor(1)
    try:
        ahead = deque(executor.submit(next, source, end) for _ in range(num_ahead))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(executor.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        executor.shutdown(cancel_futures=True)


def _exchange(action: Callable[..., Any], *args: Any) -> Any:
    """Send or receive; a worker that is gone is an error."""
    try:
        return action(*args)
    except (EOFError, ConnectionError):
        raise DataError(
            "a worker process ended early; if nothing is said above it was killed, most often because memory "
            "ran out: use fewer --workers"
        ) from None


def _send(connection: socket.socket, value: Any) -> None:
    """Send a value: its pickle, then the arrays in it as they lie in memory."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    sizes = struct.pack(f"<{len(parts)}Q", *map(len, parts))
    connection.sendall(SIZE.pack(len(parts)) + sizes)
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    (num_parts,) = SIZE.unpack(_receive_bytes(connection, SIZE.size))
    sizes = struct.unpack(f"<{num_parts}Q", _receive_bytes(connection, num_parts * SIZE.size))
    pickled, *buffers = [_receive_bytes(connection, size) for size in sizes]
    return pickle.loads(pickled, buffers=buffers)


def _receive_bytes(connection: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if count == 0:
            raise EOFError
        view = view[count:]
    return buffer


def _serve(
    function: Callable[[Any], Any],
    fetch: Callable[[Any], Any],
    connection: socket.socket,
    others: list[socket.socket],
) -> None:
    """Work until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()  # inherited; held open they would hide from a worker that the parent is gone
    fetched: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
    thread = threading.Thread(target=_fetch_tasks, args=(fetch, connection, fetched), daemon=True)
    thread.start()
    while (answer := fetched.get()) is not None:
        is_ok, value = answer
        del answer  # a task may be large; it is let go while its result is sent
        if is_ok:
            is_ok, value = _attempt(function, value)
        try:
            _send(connection, (is_ok, value))
        except (BrokenPipeError, ConnectionError):
            return
        del value
    thread.join()  # by then it has said what it failed of


def _fetch_tasks(
    fetch: Callable[[Any], Any],
    connection: socket.socket,
    fetched: queue.SimpleQueue[tuple[bool, Any] | None],
) -> None:
    """Receive tasks as they come, so that the sender never waits for the work on an earlier one."""
    try:
        while True:
            fetched.put(_attempt(fetch, _receive(connection)))
    except (EOFError, ConnectionError):
        pass
    finally:
        fetched.put(None)


def _attempt(function: Callable[[Any], Any], value: Any) -> tuple[bool, Any]:
    """Give (True, the result) or (False, the error of the user)."""
    try:
        return True, function(value)
    except MegatronError as error:
        return False, error
