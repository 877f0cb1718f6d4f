"""Work in threads, of NumPy and C++ that leave Python alone meanwhile: results in order, a bounded number of them ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """Give work(item) of all items, in order, some of them ahead."""
    if num_threads < 2:
        yield from map(work, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in itertools.islice(left, 2 * num_threads):
            ahead.append(pool.submit(work, item))
        while ahead:
            yield ahead.popleft().result()
            for item in itertools.islice(left, 1):
                ahead.append(pool.submit(work, item))
