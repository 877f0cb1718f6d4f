"""Fixtures every test may ask for."""

from collections.abc import Iterator

import pytest

from tests.world import Worlds


@pytest.fixture(scope="session")
def world() -> Iterator[Worlds]:
    """`world(size).run(function, *args)`: run function on every rank of a gloo world of that size."""
    worlds = Worlds()
    yield worlds
    worlds.close()
