"""tools/sample_hf.py: an exported folder completes and infills, and what cannot is named."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron.errors import ConfigError, DataError
from tests.convert.runs import make_run
from tools import convert_to_hf
from tools import sample_hf as tool


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_run(folder / "run", max_position_embeddings=64)
    convert_to_hf.main(["--load", str(folder / "run"), "--save", str(folder / "out")])
    return folder / "out"


def run(model: Path, *args: object) -> int | None:
    return tool.main(["--model", str(model), *map(str, args)])


def test_shows_what_the_model_adds_to_both_prompts(export: Path, capsys) -> None:
    prompts = ("--prompt", "def add(", "--infill", "def add([HERE]):\n    return a\n")
    run(export, *prompts, "--max-new-tokens", 5)
    first = capsys.readouterr().out
    completion, infilling = first.split("--- infilling\n")
    assert completion.startswith("--- completion\ndef add(>>>")
    assert infilling.startswith("def add(>>>") and infilling.rstrip().endswith(
        "<<<):\n    return a"
    )
    run(export, *prompts, "--max-new-tokens", 5)
    assert capsys.readouterr().out == first  # the same seed


def test_infilling_asks_in_the_order_of_training(export: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(export)
    ids = tool.infilling_ids(tokenizer, "def f([HERE]): pass")
    expected = "<fim_prefix>def f(<fim_suffix>): pass<fim_middle>"
    assert ids == tokenizer.encode(expected, add_special_tokens=False)


def test_what_cannot_be_sampled_is_named(export: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="holds 0 times"):
        run(export, "--infill", "nothing to fill")
    with pytest.raises(ConfigError, match="room for 14 before --max-new-tokens 50"):
        run(export, "--prompt", "x = 1\n" * 10, "--max-new-tokens", 50)
    with pytest.raises(ConfigError, match=r"has 64 positions, .*give 63 at most"):
        run(export, "--max-new-tokens", 100_000)
    with pytest.raises(ConfigError, match="--prompt is empty"):
        run(export, "--prompt", "")
    damaged = tmp_path / "damaged"
    shutil.copytree(export, damaged)
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=f"--model {damaged} does not load: "):
        run(damaged)
    with pytest.raises(ConfigError, match="starts at 1"):
        run(export, "--max-new-tokens", 0)
