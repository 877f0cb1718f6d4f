"""A run that stops and starts again is bitwise the run that never stopped; what does not fit is refused."""

import hashlib
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch

from megatron.checkpoint.reader import CheckpointReader
from megatron.errors import CheckpointError
from megatron.optimizer.schedule import Schedule
from megatron.training.contents import Contents
from megatron.training.history.trace import RunRecord, samples_of_step
from megatron.training.inputs import open_inputs
from megatron.training.pretrain import build_run, describe_run
from megatron.training.start import Start, plan_start
from megatron.training.train import train
from megatron.training.verified_start import verified_start
from tests.grid import grid_of
from tests.training.runs import flags_of, parse, read_metrics, train_here

LAYOUT = "--tensor-model-parallel-size 2 --hidden-dropout 0.1 --attention-dropout 0.1"
CASES = {
    "tensor parallel with dropout": LAYOUT,
    "bf16, distributed optimizer, workers": "--bf16 --use-distributed-optimizer --num-workers 2 "
    "--gradient-accumulation-fusion on",
    "fp16 with a loss scale": "--fp16 --initial-loss-scale 1048576 --loss-scale-window 3",
    "pipeline with dropout and documents": "--pipeline-model-parallel-size 2 --hidden-dropout 0.1 "
    "--reset-position-ids --reset-attention-mask",
    "moments in bf16": "--use-distributed-optimizer --use-precision-aware-optimizer "
    "--exp-avg-dtype bf16 --exp-avg-sq-dtype bf16",
    "grown batch": "--rampup-batch-size 4 2 24",
}


def _numbers(save: Path) -> list[tuple]:
    training, validation = read_metrics(save)
    rows = [
        (step, row["lm_loss"], row["grad_norm"], row["learning_rate"], row["consumed_samples"])
        for step, row in training.items()
    ]
    return [*rows, *validation.items()]


def _tensors(save: Path) -> dict[str, torch.Tensor]:
    (folder,) = sorted(save.glob("iter_*"))[-1:]
    reader = CheckpointReader.open(folder)
    return {name: reader.read(name) for name in reader.names()}


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_run_is_bitwise_the_same(world, corpus, tmp_path, case):
    def flags(name: str, extra: str = "") -> str:
        text = flags_of(corpus, tmp_path / name, f"{CASES[case]} --log-interval 3 {extra}")
        if "rampup" in text:
            text = text.replace("--train-iters 20", "--train-samples 100")
            return text.replace("--lr-warmup-iters 2", "--lr-warmup-samples 10")
        return f"{text} --train-iters 8 --eval-interval 6 --global-batch-size 4"

    assert world(2).run(train_here, flags("whole")) == ["finished"] * 2
    assert world(2).run(train_here, flags("parts", "--exit-interval 5")) == ["stopped"] * 2
    assert world(2).run(train_here, flags("parts")) == ["finished"] * 2
    assert _numbers(tmp_path / "parts") == _numbers(tmp_path / "whole")
    parts, whole = _tensors(tmp_path / "parts"), _tensors(tmp_path / "whole")
    assert list(parts) == list(whole)
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """The folder of a run that made two checkpoints."""
    save = tmp_path_factory.mktemp("trained")
    world(1).run(train_here, flags_of(corpus, save, "--train-iters 4 --save-interval 2"))
    return save


def test_run_keeps_everything_an_export_needs(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"iter_0000002", "iter_0000004", "tokenizer", "metrics.jsonl", "tensorboard"} <= names
    options = (trained / "config.json").read_bytes()
    assert options == (trained / "iter_0000004" / "config.json").read_bytes()
    assert (trained / "latest_checkpointed_iteration.txt").read_text().strip() == "4"


def test_a_run_may_read_the_tokenizer_from_its_own_folder(corpus, tmp_path):
    """As the remedy for another tokenizer says, with the files that came beside it."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copyfile(corpus.tokenizer, folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text("{}")
    flags = flags_of(
        corpus, tmp_path, f"--tokenizer-type HuggingFaceTokenizer --tokenizer-model {folder}"
    )
    inputs = open_inputs(parse(flags), 1)
    describe_run(inputs)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "config.json"}


def test_run_keeps_everything_a_trace_needs(trained):
    record = RunRecord.open(trained, 3)
    assert record.folder == trained / "iter_0000004"
    assert samples_of_step(record, 3, rank=0, world_size=None) == list(range(16, 24))


def test_a_complete_run_starts_and_ends_without_a_step(world, corpus, trained):
    before = (trained / "metrics.jsonl").read_text()
    flags = flags_of(corpus, trained, "--train-iters 4")
    assert world(1).run(train_here, flags) == ["finished"]
    assert (trained / "metrics.jsonl").read_text() == before


def _start(flags: str) -> Start:
    return plan_start(open_inputs(parse(flags), 1), 1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            "--hidden-size 64 --num-layers 2",
            r"with --num-layers 4 \(this run: 2\), --hidden-size 32 \(this run: 64\)\.",
        ),
        ("--attention-head-type multihead", r"--num-query-groups 1 \(this run: 4\)"),
        ("--seed 7", "--seed 1234"),
        ("--lr 0.5", r"--lr was 0.01 and is 0.5 .*Give the old value, .*--override-opt_param"),
        ("--train-iters 8", r"--train-iters was 4 and is 8 \(decay_samples was 32 and is 64\)"),
        ("--lr-decay-iters 3", "--lr-decay-iters was not set and is 3"),
        ("--global-batch-size 4", "--global-batch-size was 8 and is 4"),
        ("--fim-rate 0", r"--fim-rate 0.5 \(this run: 0.0\)"),
        ("--seq-length 16", r"--seq-length 32 \(this run: 16\)"),
        ("--reset-attention-mask", r"--reset-attention-mask False \(this run: True\)"),
    ],
)
def test_a_run_that_does_not_fit_its_checkpoint_is_refused(corpus, trained, extra, message):
    with pytest.raises(CheckpointError, match=message):
        _start(flags_of(corpus, trained, f"--train-iters 4 {extra}"))


@pytest.mark.parametrize(
    ("extra", "lr"),
    [
        ("--seed 7 --no-load-rng", 0.01),
        ("--lr 0.5 --train-iters 8 --override-opt_param-scheduler", 0.5),
        ("--lr 0.5 --train-iters 8 --use-checkpoint-opt_param-scheduler", 0.01),
    ],
)
def test_a_flag_allows_the_difference(corpus, trained, extra, lr):
    start = _start(flags_of(corpus, trained, f"--train-iters 4 {extra}"))
    assert start.folder == trained / "iter_0000004"
    assert start.schedule.lr == lr
    assert start.takes_optimizer and start.takes_progress


def test_no_load_optim_goes_on_at_the_same_step_with_a_fresh_optimizer_once(
    corpus, trained, tmp_path
):
    extra = f"--train-iters 4 --load {trained} --no-load-optim"
    start = _start(flags_of(corpus, tmp_path / "own", extra))
    assert (start.folder, start.place) == (trained / "iter_0000004", (4, 32))
    assert start.takes_progress and not start.takes_optimizer
    # The same command after a checkpoint of its own: the optimizer in it was begun afresh already.
    shutil.copytree(trained, tmp_path / "own")
    assert _start(flags_of(corpus, tmp_path / "own", extra)).takes_optimizer


def _opt_out(tmp_path: Path, *documents: int) -> Path:
    path = tmp_path / f"without{documents}.jsonl".replace(" ", "")
    lines = [f'{{"dataset": "train", "document": {document}}}\n' for document in documents]
    path.write_text("".join(lines))
    return path


def test_a_change_of_the_opt_out_list_is_refused_by_name_and_allowed_on_purpose(
    world, corpus, tmp_path, caplog
):
    def flags(path: Path | None, extra: str = "") -> str:
        option = "" if path is None else f"--exclude-documents {path}"
        return flags_of(corpus, tmp_path / "run", f"--train-iters 4 {option} {extra}")

    one, two = _opt_out(tmp_path, 1), _opt_out(tmp_path, 1, 2)
    assert world(1).run(train_here, flags(one, "--exit-interval 2")) == ["stopped"]
    renamed = one.with_name("other.jsonl")
    shutil.copy(one, renamed)
    assert _start(flags(renamed)).place == (2, 16)  # its content counts
    for path in (two, None):
        wanted = re.escape(f"trained with --exclude-documents {one} (sha256 ")
        with pytest.raises(CheckpointError, match=wanted) as error:
            _start(flags(path))
        assert "--override-exclude-documents to go on" in str(error.value)
        with caplog.at_level("INFO", "megatron"):
            assert _start(flags(path, "--override-exclude-documents")).place == (2, 16)
        assert "samples from 16 on are drawn from what is left" in caplog.text
    assert world(1).run(train_here, flags(two, "--override-exclude-documents")) == ["finished"]
    assert _start(flags(two)).place == (4, 32)  # the new list is the run's now
    assert _start(flags(two)).opt_outs == (hashlib.sha256(two.read_bytes()).hexdigest(),)


def test_finetune_takes_weights_starts_at_zero_and_continues_itself(
    world, corpus, trained, tmp_path
):
    extra = f"--train-iters 4 --lr 5e-3 --load {trained} --finetune --no-load-optim"
    flags = flags_of(corpus, tmp_path / "parts", extra)
    assert world(1).run(train_here, f"{flags} --exit-interval 2") == ["stopped"]
    _, validation = read_metrics(tmp_path / "parts")
    _, before = read_metrics(trained)
    assert validation[0] == before[4]
    assert world(1).run(train_here, flags) == ["finished"]
    whole = flags_of(corpus, tmp_path / "whole", extra)
    assert world(1).run(train_here, whole) == ["finished"]
    assert _numbers(tmp_path / "parts") == _numbers(tmp_path / "whole")


def test_a_run_is_never_overwritten_by_a_fresh_one(corpus, trained):
    before = (trained / "metrics.jsonl").read_text()
    flags = flags_of(corpus, trained, "--train-iters 4").replace(f"--load {trained}", "")
    with pytest.raises(CheckpointError, match=r"already holds a run \(iter_0000004\); add --load"):
        _start(flags)
    assert (trained / "metrics.jsonl").read_text() == before


def test_a_run_that_began_elsewhere_goes_on_from_its_own_folder(corpus, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "own")
    flags = flags_of(corpus, tmp_path / "own", f"--train-iters 4 --load {trained}")
    assert _start(flags).folder == tmp_path / "own" / "iter_0000004"


def _train_with_small_files(rank: int, flags: str, limit: int, message: str) -> str:
    """No file may grow over limit bytes, which fails as a full disk does."""
    inputs = open_inputs(parse(flags), 2)
    start = plan_start(inputs, 2)
    # Its rendezvous is a file, which other tests made long: it comes before the limit.
    context = grid_of(inputs.config.parallel)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match=message) as error:
            train(build_run(inputs, start, context))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return str(error.value)


def test_a_disk_that_fills_ends_every_process_alike_and_keeps_what_was_saved(
    world, corpus, trained, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = sorted(run.rglob("*"))
    flags = flags_of(corpus, run, "--train-iters 5 --override-opt_param-scheduler --eval-iters 0")
    assert corpus.tokenizer.stat().st_size > 10_000
    for limit, message in [
        (10_000, r"tokenizer\.json\.tmp cannot be written: File too large; make room"),
        (100_000, r"safetensors cannot be written: File too large; .*the same command continues"),
    ]:
        messages = world(2).run(_train_with_small_files, flags, limit, message)
        assert messages[0] == messages[1]
        after = sorted(path for path in run.rglob("*") if "tensorboard" not in path.parts)
        assert after == [path for path in before if "tensorboard" not in path.parts]
    assert _start(flags).folder == run / "iter_0000004"


@pytest.mark.parametrize("flag", ["--exit-on-missing-checkpoint", "--finetune"])
def test_a_missing_checkpoint_is_an_error_when_asked_for(corpus, tmp_path, flag):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        _start(flags_of(corpus, tmp_path, flag))
    assert _start(flags_of(corpus, tmp_path)).folder is None


SCHEDULE = Schedule(1.0, 0.0, "linear", 0, 1, "linear", 0, "constant", 0.0, 0.0, 0)


def _start_on_separate_disks(rank: int, folder: str) -> str:
    start = Start(
        Path(folder) if rank == 0 else None,
        {"iteration": 4, "consumed_samples": 8} if rank == 0 else {},
        SCHEDULE,
        Contents("", {}, {}),
        takes_progress=True,
    )
    with pytest.raises(CheckpointError, match="storage that all nodes share") as error:
        verified_start(None, start, 2)
    return str(error.value)


def test_processes_that_found_different_checkpoints_all_say_so(world, trained):
    messages = world(2).run(_start_on_separate_disks, str(trained / "iter_0000004"))
    assert messages[0] == messages[1]
