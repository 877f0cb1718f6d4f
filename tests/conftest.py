"""Fixtures every test may ask for."""

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
import torch

from tests import shared_memory
from tests.training.corpus import Corpus, make_corpus
from tests.world import Worlds


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the proof that all layouts are one model be repeated whole and with other numbers."""
    parser.addoption("--matrix", choices=["suite", "full"], default="suite")
    parser.addoption("--matrix-seed", type=int, default=1234)
    parser.addoption("--matrix-width", type=int, default=24)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu, with its reason, where there is none; let no test draw what others left to draw."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.manual_seed(1)


# Threads of several processes wait for each other by spinning, ten times as long as they work where cores are few. What
# threads change is tested with a number of them.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# What torch.compile keeps in /tmp of another session, whose processor had other instructions, gives other numbers here.
_compiled = tempfile.TemporaryDirectory(prefix="inductor_", ignore_cleanup_errors=True)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name

# A session started in the background ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def world() -> Iterator[Worlds]:
    """`world(size).run(function, *args)`: run function on every rank of a gloo world of that size.

    Worlds end with their file, for idle processes cost time too (see tests/grid.py).
    """
    worlds = Worlds()
    yield worlds
    worlds.close()


@pytest.fixture(scope="module")
def memory_world() -> Iterator[Worlds]:
    """The same where collectives take microseconds: through shared memory (tests/shared_memory.py)."""
    worlds = Worlds(shared_memory.BACKEND)
    yield worlds
    worlds.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A small real corpus on disk, with its tokenizer."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))
