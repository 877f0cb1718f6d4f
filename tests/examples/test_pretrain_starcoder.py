"""examples/pretrain_starcoder.sh: its recipes are the published models, and what it lacks it names.

Whole runs of MODEL=tiny are the job of .ci/run.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.world import launcher_environment

SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_starcoder.sh"
OURS = ("MODEL", "RUN_DIR", "SAVE", "DATA_PATH", "TOKENIZER_FILE", "GPUS_PER_NODE", "NNODES")


def launch(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in launcher_environment().items()
        if name not in OURS and not name.startswith("SLURM_")
    }
    environment |= {"TRAIN_PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        ["bash", str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        env=environment | variables,
        timeout=120,
    )


# Parameters, layout and tokens a step as published (StarCoder §5.4, §5.6; launch files and cards of the others).
PUBLISHED = {
    "tiny": ("3,813,120", "2 processes = 1 pipeline x 1 data x 2 tensor", "1,024 tokens"),
    "1b": ("1,137,207,296", "128 processes = 1 pipeline x 128 data x 1 tensor", "1,048,576 tokens"),
    "3b": ("3,043,311,104", "256 processes = 1 pipeline x 256 data x 1 tensor", "2,097,152 tokens"),
    "7b": ("7,327,263,232", "512 processes = 1 pipeline x 256 data x 2 tensor", "4,194,304 tokens"),
    "15b": (
        "15,517,456,384",
        "512 processes = 4 pipeline x 32 data x 4 tensor",
        "4,194,304 tokens",
    ),
    "santacoder": (
        "1,124,886,528",
        "96 processes = 1 pipeline x 96 data x 1 tensor",
        "393,216 tokens",
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_recipe_is_the_published_model(model: str) -> None:
    result = launch("--dry-run", MODEL=model, GPUS_PER_NODE="2" if model == "tiny" else "")
    assert result.returncode == 0, result.stderr
    for text in PUBLISHED[model]:
        assert text in result.stdout


def test_flags_after_the_name_win_and_nodes_are_counted() -> None:
    result = launch(
        "--dry-run",
        "--num-layers",
        "4",
        "--train-iters",
        "10",
        MODEL="15b",
        NNODES="4",
        GPUS_PER_NODE="8",
    )
    assert result.returncode == 0, result.stderr
    assert "4 layers of width 6144" in result.stdout
    assert "32 processes = 4 pipeline x 2 data x 4 tensor" in result.stdout
    assert "5,120 samples" in result.stdout


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        ([], {"MODEL": "2b"}, "MODEL is '2b'; allowed: tiny, 1b, 3b, 7b, 15b, santacoder"),
        ([], {"MODEL": "15b"}, "DATA_PATH is not set"),
        ([], {"MODEL": "15b", "DATA_PATH": "data/code"}, "TOKENIZER_FILE is not set"),
        (["--dry-run", "--num-layer", "4"], {}, "did you mean --num-layers?"),
        (
            ["--dry-run"],
            {"MODEL": "15b", "GPUS_PER_NODE": "8"},
            "needs 16 processes and there are 8",
        ),
        (
            [],
            {
                "MODEL": "1b",
                "DATA_PATH": "none/code",
                "TOKENIZER_FILE": "none.json",
                "GPUS_PER_NODE": "1",
            },
            "none.json",
        ),
        (
            ["--tokenizer-type", "NullTokenizer", "--vocab-size", "9", "--fim-rate", "0"],
            {"MODEL": "1b", "DATA_PATH": "x", "GPUS_PER_NODE": "1", "NNODES": "2"},
            "x.idx",
        ),
    ],
)
def test_mistakes_end_with_a_line_and_code_2(
    flags: list[str], variables: dict[str, str], message: str
) -> None:
    result = launch(*flags, **variables)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
