"""One model on disk and one server of it, for all tests of a session that ask a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inference.models import make_model
from tests.serving.process import ServerProcess

NUM_POSITIONS = 4096  # long enough to be interrupted


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return make_model(folder / "run", max_position_embeddings=NUM_POSITIONS)


@pytest.fixture(scope="session")
def server(run: Path) -> Iterator[ServerProcess]:
    """A server with room for three, one waiting, and little patience."""
    limits = "--batch-size 3 --queue-size 1 --max-body-bytes 20000 --max-connections 20"
    patience = "--header-seconds 0.5 --body-seconds 1 --stall-seconds 0.5"
    with ServerProcess(run, *limits.split(), *patience.split()) as process:
        yield process
