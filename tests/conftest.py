"""Fixtures every test may ask for."""

import signal
from collections.abc import Iterator

import pytest
import torch

from tests.training.corpus import Corpus, make_corpus
from tests.world import Worlds


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu, with its reason, where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


# A session started in the background ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
