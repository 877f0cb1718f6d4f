"""tools/verify.py checkpoint: for people and for programs, and how it ends."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.checkpoint.save import save_checkpoint
from megatron.cli import run_main
from megatron.convert.hf_export import export_hf
from megatron.convert.hf_folder import INDEX_FILE
from megatron.convert.hf_import import open_hf
from megatron.convert.imported import convert
from megatron.convert.source import RunSource
from tests.convert.runs import MULTI_HEAD, MULTI_QUERY, make_run
from tools import verify as tool

TOOL = Path(tool.__file__)

WEIGHT = torch.arange(12.0).reshape(4, 3)
CHANGED = WEIGHT.clone()
CHANGED[2, 1] += 0.25
CHANGED[3, 2] = float("nan")


def verify(*arguments):
    """Run the tool in this process; give what a process would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(lambda: tool.main(["checkpoint", *map(str, arguments)]))
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: the second has other values and came further."""
    root = tmp_path_factory.mktemp("runs")
    for name, weight, samples in (("a", WEIGHT, 16), ("b", CHANGED, 24)):
        tensors = {"model.w": weight, "model.z": torch.ones(2)}
        state = {"iteration": 2, "consumed_samples": samples}
        save_checkpoint(root / name, 2, tensors, state=state, config={})
    return root


def test_a_checkpoint_is_printed_for_people(runs):
    result = verify(runs / "a")
    assert (result.returncode, result.stderr) == (0, "")
    digest = hashlib.sha256(WEIGHT.numpy().tobytes()).hexdigest()
    first, second, totals, state = result.stdout.splitlines()
    assert first == f"model.w  [4, 3] F32  norm {506**0.5:.9g}  sha256 {digest[:16]}"
    assert second.startswith("model.z  [2] F32  norm 1.41421356  ")
    assert totals.startswith(f"{runs / 'a' / 'iter_0000002'}: 2 tensors, 14 values, ")
    assert state == "state: iteration 2, consumed_samples 16"


def test_two_checkpoints_that_differ_end_with_1_and_say_where(runs):
    result = verify(runs / "a", "--against", runs / "b" / "iter_0000002")
    assert (result.returncode, result.stderr) == (1, "")
    assert "  values differ: 2 of 12, most at [3, 2], 11 and nan, by inf" in result.stdout
    assert result.stdout.endswith(
        "different: model.w; the first is model.w\n  state consumed_samples: 16 and 24\n"
    )


def test_a_state_that_differs_is_a_difference_too(runs):
    result = verify(runs / "a", "--against", runs / "b", "--tensors", "model.z")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.endswith(
        "different: the state; every tensor is equal bit for bit\n"
        "  state consumed_samples: 16 and 24\n"
    )


def test_the_state_of_a_conversion_is_not_compared(tmp_path):
    make_run(tmp_path / "run")
    export_hf(
        RunSource.open(tmp_path / "run"),
        make_folder(tmp_path / "hf"),
        dtype=torch.float32,
        max_shard_bytes=10**9,
        progress=lambda _: None,
    )
    imported = open_hf(tmp_path / "hf", accepts_exact_gelu=False)
    convert(lambda: imported, tmp_path / "back", overwrite=False)
    arguments = (tmp_path / "run", "--against", tmp_path / "back", "--tensors", "model.*")
    for options in (arguments, (arguments[2], "--against", arguments[0], *arguments[3:])):
        result = verify(*options)
        assert result.returncode == 0
        assert result.stdout.endswith(
            f"state: not compared, as {tmp_path / 'back' / 'iter_0000000'} was converted and holds weights alone\n"
            "equal: every tensor bit for bit\n"
        )
    verdict = json.loads(verify(*arguments, "--json").stdout.splitlines()[-1])
    assert (verdict["equal"], verdict["state_differences"]) == (True, None)


def test_two_equal_checkpoints_end_with_0(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "copy")
    result = verify(runs / "a", "--against", tmp_path / "copy")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("equal: every tensor bit for bit, and the state\n")


def test_programs_get_an_object_a_tensor_and_one_more(runs):
    result = verify(runs / "b", "--against", runs / "a", "--json", "--tensors", "*.w")
    assert (result.returncode, result.stderr) == (1, "")
    tensor, totals = (json.loads(line) for line in result.stdout.splitlines())
    assert tensor == {
        "tensor": "model.w",
        "shape": [4, 3],
        "dtype": "F32",
        "norm": None,
        "sha256": hashlib.sha256(CHANGED.numpy().tobytes()).hexdigest(),
        "nan": 1,
        "inf": 0,
        "difference": {
            "reason": "values differ",
            "num_values": 2,
            "largest": None,
            "index": [3, 2],
            "values": [None, 11.0],
        },
    }
    assert (totals["equal"], totals["different"]) == (False, ["model.w"])
    assert totals["not_finite"] == ["model.w"]
    assert totals["state"] == {"iteration": 2, "consumed_samples": 24}
    assert totals["state_differences"] == {"consumed_samples": [24, 16]}


@pytest.mark.parametrize("heads", [MULTI_QUERY, MULTI_HEAD], ids=["multiquery", "multihead"])
def test_an_export_equals_its_checkpoint_until_a_weight_changes(tmp_path, heads):
    make_run(tmp_path / "run", **heads)
    export_hf(
        RunSource.open(tmp_path / "run"),
        make_folder(tmp_path / "hf"),
        dtype=torch.float32,
        max_shard_bytes=5000,
        progress=lambda _: None,
    )
    arguments = (tmp_path / "run", "--against", tmp_path / "hf", "--tensors", "model.*")
    with mock.patch("megatron.checkpoint.safetensors_file.BLOCK_BYTES", 200):
        result = verify(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith("equal: every tensor bit for bit\n")
        place = "transformer.h.1.attn.c_attn.weight"
        file = (
            tmp_path
            / "hf"
            / json.loads((tmp_path / "hf" / INDEX_FILE).read_text())["weight_map"][place]
        )
        weights = load_file(file)
        weights[place][0, 7] += 1
        save_file(weights, file, {"format": "pt"})
        result = verify(*arguments)
    assert result.returncode == 1
    assert "values differ: 1 of 225, most at [0, 7]," in result.stdout
    assert "first is model.layers.1.self_attention.query.weight\n" in result.stdout


def make_folder(path):
    path.mkdir()
    return path


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("rank_00000.safetensors", Path.unlink),
        ("rank_00000.safetensors", _cut),
        ("metadata.json", Path.unlink),
        ("metadata.json", _cut),
        ("state.json", Path.unlink),
        ("config.json", _cut),
    ],
)
def test_missing_and_cut_files_are_named_in_one_line(runs, tmp_path, file, damage):
    folder = tmp_path / "iter_0000002"
    shutil.copytree(runs / "a" / folder.name, folder)
    damage(folder / file)
    for arguments in ([folder], [runs / "a", "--against", folder]):
        result = verify(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert str(folder / file) in result.stderr and result.stderr.count("\n") == 1


def test_it_runs_as_a_process_too(runs):
    command = [sys.executable, TOOL, "checkpoint", runs / "a", "--against", runs / "b"]
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout == verify(runs / "a", "--against", runs / "b").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/c"], "c is not a folder"),
        (["{runs}"], "holds no checkpoint"),
        (["{runs}/a", "--tensors", "layer"], "no tensor like 'layer'; names are such as 'model.w'"),
        (["{runs}/a", "--agianst", "x"], "did you mean --against?"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(runs, arguments, message):
    result = verify(*(argument.format(runs=runs) for argument in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr and result.stderr.count("\n") == 1
