"""tools/convert_to_hf.py from its command line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron.errors import CheckpointError, ConfigError
from tests.convert.runs import make_run
from tests.forked import run_forked
from tools import convert_to_hf as tool

TOOL = Path(tool.__file__)


def run(*args):
    tool.main([str(arg) for arg in args])


def call(*args):
    return run_forked(TOOL, *args)


def test_root_and_folder_give_the_same_files(tmp_path, capsys):
    make_run(tmp_path / "run")
    run("--load", tmp_path / "run", "--save", tmp_path / "a", "--verify")
    summary = capsys.readouterr().out.strip()
    assert "iteration 20" in summary
    assert "logits equal" in summary
    assert "\n" not in summary
    run("--load", tmp_path / "run" / "iter_0000020", "--save", tmp_path / "b")
    run("--load", tmp_path / "run", "--iteration", 20, "--save", tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        expected = (tmp_path / "a" / name).read_bytes()
        assert (tmp_path / "b" / name).read_bytes() == expected
        assert (tmp_path / "c" / name).read_bytes() == expected


def test_the_result_completes_and_infills_through_transformers(tmp_path):
    make_run(tmp_path / "run", max_position_embeddings=64)
    run("--load", tmp_path / "run", "--save", tmp_path / "out", "--dtype", "bf16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("<fim_prefix>def f(<fim_suffix>): pass<fim_middle>", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert output.shape[1] <= inputs["input_ids"].shape[1] + 4
    assert model.dtype == torch.bfloat16


def test_an_export_is_replaced_only_when_asked(tmp_path):
    make_run(tmp_path / "run")
    run("--load", tmp_path / "run", "--save", tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        run("--load", tmp_path / "run", "--save", tmp_path / "out")
    run("--load", tmp_path / "run", "--save", tmp_path / "out", "--overwrite", "--dtype", "fp16")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    run("--load", tmp_path / "run", "--save", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1.5 * size
    with pytest.raises(ConfigError, match="replaces an earlier export"):
        run("--load", tmp_path / "run", "--save", tmp_path / "run", "--overwrite")


def test_a_model_that_is_no_export_is_never_replaced(tmp_path):
    make_run(tmp_path / "run")
    run("--load", tmp_path / "run", "--save", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=r"theirs is none .* remove it by hand"):
        run("--load", tmp_path / "run", "--save", tmp_path / "theirs", "--overwrite")
    assert (tmp_path / "theirs" / "notes").read_text() == "mine"


def test_a_run_without_tokenizer_exports_and_says_so(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").unlink()
    run("--load", tmp_path / "run", "--save", tmp_path / "out")
    assert "no tokenizer in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_damage_leaves_no_output(tmp_path):
    make_run(tmp_path / "run")
    file = tmp_path / "run" / "iter_0000020" / "rank_00000.safetensors"
    file.write_bytes(b"?" + file.read_bytes()[1:])
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        run("--load", tmp_path / "run", "--save", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("700", 700), ("10KB", 10_000)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert tool.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5GB", "5 GiB", "big"])
def test_a_size_that_is_none_is_an_error(text):
    with pytest.raises(ConfigError, match="--max-shard-size"):
        tool.parse_size(text)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = call("--load", tmp_path / "none", "--save", tmp_path / "out")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "is not a folder" in result.stderr
