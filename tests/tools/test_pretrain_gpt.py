"""What a user of tools/pretrain_gpt.py meets: a dry run that explains, and one clear line for every mistake."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.checkpoint.lock import FolderLock
from megatron.config import to_json
from megatron.optimizer.schedule import Schedule
from megatron.training.fingerprint import FINGERPRINT
from megatron.training.inputs import open_inputs
from tests.checkpoint.seal import seal
from tests.forked import run_forked
from tests.training.corpus import Corpus
from tests.training.runs import flags_of, parse

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return run_forked("tools/pretrain_gpt.py", *arguments)


def _copy(corpus: Corpus, folder: Path) -> Corpus:
    shutil.copytree(corpus.tokenizer.parent, folder)
    return Corpus(folder / "tokenizer.json", folder / "train", folder / "valid", folder / "short")


def _without_sentinels(corpus: Corpus) -> None:
    definition = json.loads(corpus.tokenizer.read_text())
    kept = [token for token in definition["added_tokens"] if "fim" not in token["content"]]
    definition["added_tokens"] = kept
    vocabulary = definition["model"]["vocab"]
    definition["model"]["vocab"] = {
        token.replace("<fim", "<fam"): number for token, number in vocabulary.items()
    }
    corpus.tokenizer.write_text(json.dumps(definition))


def _truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "missing data": (lambda c: c.train.with_suffix(".bin").unlink(), "train.bin"),
    "missing index": (lambda c: c.train.with_suffix(".idx").unlink(), "train.idx"),
    "empty index": (lambda c: _truncate(c.train.with_suffix(".idx"), 0), "train.idx"),
    "truncated index": (lambda c: _truncate(c.train.with_suffix(".idx"), 50), "train.idx"),
    "truncated data": (lambda c: _truncate(c.train.with_suffix(".bin"), 100), "train.bin"),
    "missing tokenizer": (lambda c: c.tokenizer.unlink(), "tokenizer.json"),
    "empty tokenizer": (lambda c: _truncate(c.tokenizer, 0), "tokenizer.json"),
    "no sentinels": (_without_sentinels, "fim_"),
}
MISTAKES = {
    "heads": ("--tensor-model-parallel-size 3", "--num-attention-heads 4"),
    "processes": ("--tensor-model-parallel-size 4 --world-size 2", "there are 2"),
    "missing yaml": ("--config nothing.yaml", "nothing.yaml"),
    "missing paths file": ("--train-weighted-split-paths-path nothing.txt", "nothing.txt"),
    "unknown flag": ("--hiden-size 32", "did you mean --hidden-size"),
    "long warmup": ("--lr-warmup-iters 20", "a warmup of 160"),
    "no package": ("--wandb-entity-name a --wandb-project-name b", "pip install wandb"),
    "file as folder": ("--tensorboard-dir setup.py/a", "setup.py is a file"),
    "fixed attention": ("--attention-backend slow", "invalid choice"),
}


def _assert_one_line(result: subprocess.CompletedProcess, part: str) -> None:
    assert result.returncode == 2, result.stderr
    logged, _, error = result.stderr.rpartition("pretrain_gpt.py: error: ")
    assert error.count("\n") == 1, result.stderr
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in logged.splitlines())
    assert part in result.stderr


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_input_is_one_line_and_code_2(corpus, tmp_path, name):
    damage, part = DAMAGE[name]
    copy = _copy(corpus, tmp_path / "copy")
    damage(copy)
    result = _run("--dry-run", *flags_of(copy, tmp_path / "run").split())
    _assert_one_line(result, part)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_code_2(corpus, tmp_path, name):
    extra, part = MISTAKES[name]
    if "paths-path" in extra:
        flags = flags_of(corpus, tmp_path, extra).replace(f"--train-data-path {corpus.train}", "")
    else:
        flags = flags_of(corpus, tmp_path, extra)
    _assert_one_line(_run("--dry-run", *flags.split()), part)


def test_damaged_input_of_a_real_start_is_one_line(corpus, tmp_path):
    copy = _copy(corpus, tmp_path / "copy")
    _truncate(copy.valid.with_suffix(".idx"), 40)
    _assert_one_line(_run(*flags_of(copy, tmp_path / "run").split()), "valid.idx")


def test_a_folder_that_cannot_be_made_is_one_line(corpus, tmp_path):
    _assert_one_line(_run(*flags_of(corpus, Path("/proc/x")).split()), "--save /proc/x")
    extra = "--structured-logs --structured-logs-dir /proc/x/y"
    result = _run(*flags_of(corpus, tmp_path / "run", extra).split())
    _assert_one_line(result, "--structured-logs-dir /proc/x/y")  # why depends on who asks


def test_a_folder_that_another_run_writes_to_is_one_line(corpus, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    lock = FolderLock(run)
    impatient = tmp_path / "impatient.py"  # tests/checkpoint/test_lock.py is about its waiting
    impatient.write_text(
        "import runpy; from megatron.checkpoint import lock; lock.LOCAL_SECONDS = 0.0\n"
        "runpy.run_path('tools/pretrain_gpt.py', run_name='__main__')\n"
    )
    result = run_forked(impatient, *flags_of(corpus, run).split())
    lock.release()
    _assert_one_line(result, f"run is being written by process {os.getpid()} on ")
    assert not {"config.json", "heartbeat.json"} & {path.name for path in run.iterdir()}


def _save_without_weights(flags: str, run: Path) -> None:
    """Write what a check reads of a checkpoint after one step."""
    inputs = open_inputs(parse(flags), 1)
    folder = run / "iter_0000001"
    folder.mkdir(parents=True)
    schedule = Schedule.create(inputs.config.optimizer, inputs.config.training, 8)
    state = {"iteration": 1, "consumed_samples": 8, "world_size": 1}
    state |= {"schedule": dataclasses.asdict(schedule), FINGERPRINT: inputs.contents.to_json()}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "config.json").write_text(json.dumps(to_json(inputs.config)))
    seal(folder)
    (run / "latest_checkpointed_iteration.txt").write_text("1\n")


def test_dry_run_finds_a_clash_with_the_checkpoint(corpus, tmp_path):
    flags = flags_of(corpus, tmp_path / "run")
    _save_without_weights(flags, tmp_path / "run")
    checked = _run("--dry-run", *flags.split())
    assert f"start      {tmp_path}/run/iter_0000001, at step 1" in checked.stdout, checked.stderr
    result = _run("--dry-run", *flags.split(), "--train-iters", "2000")
    _assert_one_line(result, "--train-iters was 20 and is 2000")


def test_world_size_without_dry_run_is_refused(corpus, tmp_path):
    result = _run("--world-size", "2", *flags_of(corpus, tmp_path / "run").split())
    _assert_one_line(result, "--world-size goes with --dry-run")


def test_dry_run_describes_and_starts_nothing(corpus, tmp_path):
    extra = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"
    flags = flags_of(corpus, tmp_path / "run", extra)
    result = _run("--dry-run", "--world-size", "8", *flags.split())
    assert result.returncode == 0, result.stderr
    assert "8 processes = 2 pipeline x 2 data x 2 tensor parallel" in result.stdout
    assert "8 sequences of 32 = 256 tokens a step, 4 micro-batches a process" in result.stdout
    assert not (tmp_path / "run").exists()


def test_dry_run_does_not_import_torch(corpus, tmp_path):
    flags = flags_of(corpus, tmp_path)
    script = (
        "import sys; sys.path.insert(0, 'tools'); import pretrain_gpt; "
        f"pretrain_gpt.main(['--dry-run', *{flags.split()!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert result.returncode == 0, result.stderr


def test_help_shows_examples_and_exit_codes():
    command = [sys.executable, "tools/pretrain_gpt.py", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert text.count("python tools/pretrain_gpt.py") == 2
    assert "exit codes" in text
