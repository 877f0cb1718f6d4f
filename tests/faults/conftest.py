"""Processes forked off one that has imported everything."""

from collections.abc import Iterator

import pytest

from megatron.benchmark.fault_injection.nursery import Nursery


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """`nursery.run(Brood(…))`: start processes in milliseconds and see how each ends."""
    with Nursery() as nursery:
        yield nursery
