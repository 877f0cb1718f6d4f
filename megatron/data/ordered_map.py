"""`map` over processes: results in the order of the tasks, a bounded number of them in memory.

Unlike multiprocessing.Pool it does not read all tasks ahead, and a worker that is killed ends the map with an error
instead of leaving it waiting. Knows nothing of what is mapped.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from megatron.errors import DataError, MegatronError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 4  # results that may wait for an earlier one, for each worker


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Generator[Result, None, None]:
    """Give function(task) for every task, in order; with one worker in this process.

    Workers are forked, so that `function` and what it holds are shared, not copied. A MegatronError in a worker is
    raised here in its turn; any other exception ends the worker with its traceback, and the map with an error.
    Closing the iterator stops the workers.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("fork")
    processes = []
    connections: list[Connection] = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            connections.append(ours)
            process = context.Process(
                target=_serve, args=(function, theirs, list(connections)), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
        yield from _in_order(connections, iter(tasks))
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
            process.join()


def _in_order(connections: list[Connection], tasks: Iterator[Any]) -> Iterator[Any]:
    idle = list(connections)
    running: dict[Connection, int] = {}  # the number of the task at each
    finished: dict[int, Any] = {}
    num_sent = num_given = 0
    has_more = True
    while True:
        while has_more and idle and num_sent < num_given + AHEAD * len(connections):
            try:
                task = next(tasks)
            except StopIteration:
                has_more = False
                break
            connection = idle.pop()
            _exchange(connection.send, task)
            running[connection] = num_sent
            num_sent += 1
        if num_given in finished:
            is_ok, value = finished.pop(num_given)
            if not is_ok:
                raise value
            yield value
            num_given += 1
        elif running:
            ready = wait(list(running))
            for connection in [connection for connection in running if connection in ready]:
                finished[running.pop(connection)] = _exchange(connection.recv)
                idle.append(connection)
        else:
            return


def _exchange(action: Callable[..., Any], *args: Any) -> Any:
    """Send or receive; a worker that is gone is an error."""
    try:
        return action(*args)
    except (EOFError, ConnectionError):
        raise DataError(
            "a worker process ended early; if nothing is said above it was killed, most often because memory "
            "ran out: use fewer --workers"
        ) from None


def _serve(
    function: Callable[[Any], Any], connection: Connection, others: list[Connection]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()  # inherited; held open they would hide from a worker that the parent is gone
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(task)
        except MegatronError as error:
            answer = False, error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
