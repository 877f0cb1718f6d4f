"""Fixtures every test may ask for."""

from collections.abc import Iterator

import pytest

from tests.training.corpus import Corpus, make_corpus
from tests.world import Worlds


@pytest.fixture(scope="session")
def world() -> Iterator[Worlds]:
    """`world(size).run(function, *args)`: run function on every rank of a gloo world of that size."""
    worlds = Worlds()
    yield worlds
    worlds.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A small real corpus on disk, with its tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
