"""tools/convert_from_hf.py from its command line, and training that goes on from what it makes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from megatron.convert import imported
from megatron.convert.hf_export import export_hf
from megatron.convert.source import RunSource
from megatron.errors import CheckpointError, ConfigError
from megatron.optimizer.schedule import Schedule
from megatron.training.contents import Contents
from megatron.training.fingerprint import Fingerprint
from megatron.training.start import find_start
from tests.convert.runs import STARCODER2, make_run
from tests.convert.test_hf_import import make_theirs
from tests.forked import run_forked
from tests.training.runs import flags_of, parse, read_metrics, train_here
from tools import convert_from_hf as tool

NOTHING = Contents("", {}, {})
TOOL = Path(tool.__file__)


def run(*args):
    tool.main([str(arg) for arg in args])


def call(*args):
    return run_forked(TOOL, *args)


def export(root, folder):
    folder.mkdir()
    export_hf(
        RunSource.open(root),
        folder,
        dtype=torch.float32,
        max_shard_bytes=10**9,
        progress=lambda _: None,
    )


def test_a_folder_becomes_a_run_and_the_summary_says_so(tmp_path, capsys):
    make_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "hf")
    run("--load", tmp_path / "hf", "--save", tmp_path / "out", "--verify")
    summary = capsys.readouterr().out.strip()
    assert "\n" not in summary
    assert "7,452 parameters at iteration 0" in summary
    assert "logits equal transformers'" in summary
    names = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    assert names == {
        "latest_checkpointed_iteration.txt",
        "generation_config.json",
        "iter_0000000",
        "iter_0000000/metadata.json",
        "iter_0000000/SHA256SUMS",
        "iter_0000000/state.json",
        "iter_0000000/config.json",
        "iter_0000000/rank_00000.safetensors",
        "tokenizer",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
    }
    state = json.loads((tmp_path / "out" / "iter_0000000" / "state.json").read_text())
    assert state == {"iteration": 0, "consumed_samples": 0, "converted_from": "hf"}


def test_a_folder_without_tokenizer_converts_and_says_so(tmp_path, capsys):
    make_theirs(tmp_path / "hf")
    run("--load", tmp_path / "hf", "--save", tmp_path / "out")
    assert "no tokenizer.json in" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_nothing_has_the_name_before_all_of_it_is_there(tmp_path, monkeypatch):
    make_theirs(tmp_path / "hf")
    num_blocks = 0

    class Writer(imported.CheckpointWriter):
        def write(self, name, values):
            nonlocal num_blocks
            assert not (tmp_path / "out").exists()
            num_blocks += 1
            if num_blocks == 20:
                raise KeyboardInterrupt
            super().write(name, values)

    monkeypatch.setattr(imported, "CheckpointWriter", Writer)
    with pytest.raises(KeyboardInterrupt):
        run("--load", tmp_path / "hf", "--save", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    make_theirs(tmp_path / "hf")

    def write(self, name, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imported.CheckpointWriter, "write", write)
    with pytest.raises(ConfigError, match="No space left on device; nothing was written"):
        run("--load", tmp_path / "hf", "--save", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_verification_that_fails_publishes_nothing(tmp_path):
    make_theirs(tmp_path / "hf", activation_function="gelu")
    with pytest.raises(CheckpointError, match="is not the model"):
        run("--load", tmp_path / "hf", "--save", tmp_path / "out", "--gelu-as-tanh", "--verify")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_import_is_replaced_only_when_asked_and_a_run_never(tmp_path):
    make_run(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "hf")
    out = tmp_path / "out"
    run("--load", tmp_path / "hf", "--save", out)
    with pytest.raises(ConfigError, match="not empty"):
        run("--load", tmp_path / "hf", "--save", out)
    run("--load", tmp_path / "hf", "--save", out, "--overwrite")
    with pytest.raises(ConfigError, match=r"earlier export or import, and .* is none"):
        run("--load", tmp_path / "hf", "--save", tmp_path / "run", "--overwrite")
    (out / "iter_0000010").mkdir()  # trained since
    with pytest.raises(ConfigError, match="is none"):
        run("--load", tmp_path / "hf", "--save", out, "--overwrite")


def losses(world, flags):
    world(1).run(train_here, flags)
    return [
        {key: line[key] for key in ("lm_loss", "grad_norm", "learning_rate")}
        for line in read_metrics(Path(flags.split("--save ")[1].split()[0]))[0].values()
    ]


def test_training_goes_on_from_an_import_as_from_the_run_it_was(world, corpus, tmp_path):
    few = "--train-iters 3 --lr-decay-iters 20 --eval-iters 0"
    world(1).run(train_here, flags_of(corpus, tmp_path / "run", few))
    export(tmp_path / "run", tmp_path / "hf")
    run("--load", tmp_path / "hf", "--save", tmp_path / "back")
    tuned = losses(
        world, flags_of(corpus, tmp_path / "a", f"{few} --finetune --load {tmp_path / 'run'}")
    )
    assert len(tuned) == 3
    for name, extra in (("b", "--finetune"), ("c", ""), ("back", "")):
        flags = flags_of(corpus, tmp_path / name, f"{few} --load {tmp_path / 'back'} {extra}")
        assert losses(world, flags) == tuned


def test_only_fine_tuning_may_see_further_than_the_weights_did(corpus, tmp_path):
    """As StarCoder2's long context was trained: another base, window and length."""
    make_run(tmp_path / "run", **STARCODER2)
    export(tmp_path / "run", tmp_path / "hf")
    run("--load", tmp_path / "hf", "--save", tmp_path / "back")
    model = RunSource.open(tmp_path / "back").config.model
    further = {"rotary_base": 9e5, "window_size": 30, "max_position_embeddings": 64}
    for name, value in further.items():
        for extra in ("", "--finetune"):
            config = parse(
                flags_of(corpus, tmp_path / "new", f"--load {tmp_path / 'back'} {extra}")
            )
            changed = dataclasses.replace(config, model=dataclasses.replace(model, **{name: value}))
            schedule = Schedule.create(config.optimizer, config.training, 8)
            if extra:
                assert find_start(Fingerprint(changed, schedule, 8, NOTHING)).folder is not None
            else:
                with pytest.raises(CheckpointError, match=f"--{name.replace('_', '-')} "):
                    find_start(Fingerprint(changed, schedule, 8, NOTHING))


def test_a_schedule_that_an_import_does_not_have_is_not_taken_from_it(corpus, tmp_path):
    make_theirs(tmp_path / "hf")
    run("--load", tmp_path / "hf", "--save", tmp_path / "back")
    model = RunSource.open(tmp_path / "back").config.model
    config = parse(
        flags_of(corpus, tmp_path / "new", f"--load {tmp_path / 'back'}")
        + " --use-checkpoint-opt_param-scheduler"
    )
    schedule = Schedule.create(config.optimizer, config.training, 8)
    with pytest.raises(CheckpointError, match="was converted and has no schedule"):
        find_start(Fingerprint(dataclasses.replace(config, model=model), schedule, 8, NOTHING))


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = call("--load", tmp_path / "none", "--save", tmp_path / "out")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "is not a folder" in result.stderr
