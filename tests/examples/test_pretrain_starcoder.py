"""examples/pretrain_starcoder.sh: its recipes are the published models, and what it lacks it names.

Whole runs of MODEL=tiny are the job of .ci/run.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron import cli
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
        timeout=300,
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
        "stages     10, 10, 10, 10 layers",
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


def test_a_recipe_is_planned_for_the_gpus_it_was_made_for() -> None:
    result = launch("--plan", "--train-iters", "2", MODEL="1b")
    assert result.returncode == 0, result.stderr
    assert "2,097,152 tokens in 2 steps" in result.stdout
    speeds = re.search(r"speed +([\d,]+) tokens/s, ([\d,]+) a device", result.stdout)
    assert speeds is not None
    total, of_one = (int(number.replace(",", "")) for number in speeds.groups())
    assert round(total / of_one) == 128


@pytest.mark.parametrize("flags", [["--help"], ["--train-iters", "20", "-h"]])
def test_help_is_the_scripts_own_and_starts_nothing(flags: list[str], tmp_path: Path) -> None:
    result = launch(*flags, MODEL="15b", TRAIN_PYTHON="/nope", RUN_DIR=str(tmp_path / "run"))
    assert (result.returncode, result.stderr) == (0, "")
    for name in OURS:
        assert name in result.stdout
    assert result.stdout.count("bash examples/pretrain_starcoder.sh") >= 2
    assert "tools/pretrain_gpt.py --help" in result.stdout
    assert not (tmp_path / "run").exists()


def test_presets_are_whole_and_say_what_the_script_does(tmp_path: Path) -> None:
    parser = cli.make_parser("", "")
    cli.add_config(parser)
    for path in SCRIPT.parent.glob("*.yaml"):
        flags = ["--config", str(path), "--data-path", "a", "--save", "b"]
        config = cli.config_from(cli.parse_known(parser, flags))
        config.check(1)
        recipe = (
            (SCRIPT.parent / "recipes.sh")
            .read_text()
            .split(f"recipe_{path.stem}()")[1]
            .split("\n}")[0]
        )
        for name in ("num-layers", "hidden-size", "seq-length", "global-batch-size", "train-iters"):
            (value,) = re.findall(rf"--{name} (\d+)", recipe)
            assert f"  {name}: {value}\n" in path.read_text()


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
        ([], {"GPUS_PER_NODE": "abc"}, "GPUS_PER_NODE is 'abc'; give a whole number from 1 on"),
        ([], {"GPUS_PER_NODE": "0"}, "GPUS_PER_NODE is '0'"),
        ([], {"NNODES": "x"}, "NNODES is 'x'"),
        ([], {"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK is 2 and NNODES 2; give 0 to 1"),
        ([], {"TRAIN_PYTHON": "/nope"}, "TRAIN_PYTHON is '/nope', which runs no Python"),
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
    flags: list[str], variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    result = launch(*flags, RUN_DIR=str(tmp_path), **variables)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_python_without_the_packages_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    result = launch(TRAIN_PYTHON=str(bare))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"TRAIN_PYTHON is '{bare}' and lacks torch numpy tokenizers" in result.stderr
    assert result.stderr.count("\n") == 1
