"""tools/convert_from_megatron.py from its command line."""

from pathlib import Path

import pytest
import torch

from tests.convert.megatron_checkpoint import write_megatron
from tests.convert.runs import write_tokenizer_files
from tests.convert.test_megatron_import import make_model
from tests.convert.test_torch_file import ATTACKS
from tests.forked import run_forked

TOOL = Path(__file__).parents[2] / "tools" / "convert_from_megatron.py"


def call(*args):
    return run_forked(TOOL, *args)


def test_a_checkpoint_of_tp_4_and_pp_2_becomes_a_run(tmp_path):
    config, weights = make_model()
    write_megatron(tmp_path / "theirs", weights, config, tp=4, pp=2)
    write_tokenizer_files(tmp_path / "tok")
    result = call(
        *("--load", tmp_path / "theirs", "--save", tmp_path / "ours"),
        *("--tokenizer-file", tmp_path / "tok" / "tokenizer.json"),
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 1
    assert "parameters at iteration 7" in result.stdout
    assert (tmp_path / "ours" / "latest_checkpointed_iteration.txt").read_text() == "7\n"
    assert (tmp_path / "ours" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_malicious_pickle_in_its_place_runs_nothing(tmp_path, is_zip):
    config, weights = make_model()
    folder = write_megatron(tmp_path / "theirs", weights, config, tp=4, pp=2)
    attack = ATTACKS["os.system"](tmp_path / "was_run")
    torch.save(
        {"model": attack},
        folder / "mp_rank_02_001" / "model_optim_rng.pt",
        _use_new_zipfile_serialization=is_zip,
    )
    result = call("--load", tmp_path / "theirs", "--save", tmp_path / "ours")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert ("is refused" if is_zip else "not of torch 1.6") in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
