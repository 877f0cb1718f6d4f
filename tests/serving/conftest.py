"""One model on disk, what the engine alone writes with it, and one server, for all tests of a session that ask a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron.inference.options import SamplingOptions
from megatron.inference.prompt import infilling_ends, infilling_ids
from megatron.inference.request import Completion, Request
from tests.inference.models import make_model, open_engine
from tests.serving.process import ServerProcess

NUM_POSITIONS = 4096  # long enough to be interrupted
PROMPT = "def add("
# Many times what a client of a busy machine takes between connecting and its last byte.
LITTLE_PATIENCE = ["--header-seconds", "1.5", "--body-seconds", "1.5", "--stall-seconds", "1"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that two processes can share, by its layers or by its stack of them."""
    folder = tmp_path_factory.mktemp("served")
    return make_model(
        folder / "run",
        hidden_size=12,
        num_attention_heads=4,
        max_position_embeddings=NUM_POSITIONS,
    )


@pytest.fixture(scope="session")
def server(run: Path) -> Iterator[ServerProcess]:
    """A server with room for three, one waiting, and little patience."""
    limits = "--batch-size 3 --queue-size 1 --max-body-bytes 20000 --max-connections 20"
    with ServerProcess(run, *limits.split(), *LITTLE_PATIENCE) as process:
        yield process


def _write(_rank: int, run: Path, asked: list[tuple]) -> list[list[Completion]]:
    engine = open_engine(run, max_rows=4)
    written = []
    for prompt, suffix, num_samples, options in asked:
        tokenizer = engine._tokenizer
        ids = tokenizer.tokenize(prompt)
        ends = frozenset()
        if suffix is not None:
            ids, ends = infilling_ids(tokenizer, prompt, suffix, "psm"), infilling_ends(tokenizer)
        one = Request("a", tuple(ids), SamplingOptions(**options), num_samples, ends)
        written.append(engine.run([one]))
    return written


@pytest.fixture(scope="module")
def written(world, run: Path) -> list[list[Completion]]:
    """What the engine alone writes: greedy with scores, filled in, and three drawn samples."""
    greedy = {"max_new_tokens": 12, "logprobs": 2}
    drawn = {"max_new_tokens": 9, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    asked = [
        (PROMPT, None, 1, greedy),
        ("x = ", "\n", 1, {"max_new_tokens": 8}),
        (PROMPT, None, 3, drawn),
        (PROMPT, None, 1, greedy | {"prompt_logprobs": True}),
    ]
    (written,) = world(1).run(_write, run, asked)
    return written
