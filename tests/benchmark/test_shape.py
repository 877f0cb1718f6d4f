"""The shapes that are measured are the recipes of examples/pretrain_starcoder.sh, flag by flag."""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron import cli
from megatron.benchmark import train
from megatron.benchmark.shape import SHAPES
from megatron.config import Config
from megatron.options import OptimizerConfig
from tests.world import launcher_environment

SCRIPT = Path(__file__).parents[2] / "examples/pretrain_starcoder.sh"
# In place of the interpreter: what the launcher asks it to train is what we want to know.
STAND_IN = f"""#!/bin/bash
[[ $1 == */pretrain_gpt.py ]] || exec {sys.executable} "$@"
printf '%s\\n' "${{@:2}}"
"""


def recipe(model: str, folder: Path) -> Config:
    """Give the options that the launcher starts a model with."""
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    variables = {"MODEL": model, "TRAIN_PYTHON": str(python), "GPUS_PER_NODE": "1"}
    variables |= {"DATA_PATH": "data/code", "TOKENIZER_FILE": "tokenizer.json"}
    if model in ("7b", "15b"):
        variables["GPUS_PER_NODE"] = "16"
    result = subprocess.run(
        ["bash", str(SCRIPT), "--dry-run"],
        capture_output=True,
        text=True,
        env=launcher_environment() | {"PYTHONPATH": str(SCRIPT.parents[1])} | variables,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    flags = result.stdout.splitlines()
    parser = cli.make_parser("", "")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--world-size")
    cli.add_config(parser)
    return cli.config_from(cli.parse_known(parser, flags))


def measured(model: str) -> Config:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(["--model", model])
    args.training_flags = []
    return train.make_config(args, [])


def without_warmup(options: OptimizerConfig) -> OptimizerConfig:
    return replace(options, lr_warmup_iters=0, lr_warmup_fraction=None, lr_decay_iters=None)


@pytest.mark.parametrize("model", [name for name in SHAPES if name != "110m"])
def test_shape_is_the_recipe(model: str, tmp_path: Path) -> None:
    published, ours = recipe(model, tmp_path), measured(model)
    assert ours.model == replace(published.model, attention_backend="auto")
    assert without_warmup(ours.optimizer) == without_warmup(published.optimizer)
    assert ours.data.seq_length == published.data.seq_length
    assert ours.data.fim_rate == published.data.fim_rate
    if model != "tiny":  # its recipe is bf16 where there is a GPU
        assert ours.precision.compute_dtype == published.precision.compute_dtype == "bfloat16"
