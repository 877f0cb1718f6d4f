"""A run whose latest checkpoint is damaged goes on from the newest good one, says so, and ends as if nothing had been."""

import shutil
from pathlib import Path

import pytest

from megatron.checkpoint.choice import find_flaw_by_length
from megatron.errors import CheckpointError
from megatron.training.inputs import open_inputs
from megatron.training.start import Start, describe_fallback, plan_start
from megatron.training.verified_start import verified_start
from tests.training.runs import flags_of, parse, read_metrics, train_here
from tools import pretrain_gpt

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """The folder of a run that made three checkpoints."""
    save = tmp_path_factory.mktemp("trained")
    world(2).run(train_here, flags_of(corpus, save, "--train-iters 6 --save-interval 2"))
    return save


@pytest.fixture
def run(trained, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(path: Path) -> None:
    """Change a bit of a value, after which every number is still one."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flags(corpus, run: Path, extra: str = "") -> str:
    return flags_of(corpus, run, f"--train-iters 6 --save-interval 2 {extra}")


def start_of(flags: str) -> Start:
    return plan_start(open_inputs(parse(flags), 1), 1)


def start_verified(rank: int, flags: str, size: int) -> tuple[tuple[int, int] | str, list[str]]:
    """Give where a process starts, or the error that it gets, and what is said of it."""
    inputs = open_inputs(parse(flags), size)
    try:
        start = verified_start(inputs, plan_start(inputs, size), size)
    except CheckpointError as error:
        return str(error), []
    return start.place, describe_fallback(start)


def numbers(save: Path) -> list[object]:
    training, validation = read_metrics(save)
    return [{k: row[k] for k in ("lm_loss", "grad_norm")} for row in training.values()] + [
        validation
    ]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("rank_00001.safetensors", flip),
        ("rank_00000.safetensors", cut),
        ("state.json", flip),
        ("metadata.json", flip),
        ("SHA256SUMS", Path.unlink),
    ],
)
def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(world, corpus, run, file, damage):
    damage(run / "iter_0000006" / file)
    places = world(2).run(start_verified, flags(corpus, run), 2)
    assert [place for place, _ in places] == [(4, 32)] * 2
    text = " ".join(places[0][1])
    assert file in text and "going on from iteration 4, so 2 steps are lost" in text
    assert (run / "iter_0000006.broken" / "config.json").is_file()
    assert not (run / "iter_0000006").exists()
    assert (run / TRACKER).read_text() == "4\n"
    assert world(2).run(start_verified, flags(corpus, run), 2) == [((4, 32), [])] * 2


def test_the_run_that_fell_back_ends_as_the_one_that_did_not(world, corpus, trained, run):
    for name in ("iter_0000006", "iter_0000004"):
        flip(run / name / "rank_00000.safetensors")
    assert world(2).run(train_here, flags(corpus, run)) == ["finished"] * 2
    assert numbers(run) == numbers(trained)
    latest = Path("iter_0000006") / "rank_00001.safetensors"
    assert (run / latest).read_bytes() == (trained / latest).read_bytes()
    assert (run / "iter_0000004.broken").is_dir()
    for name in ("iter_0000006", "iter_0000004"):  # damage strikes again: names are still free
        flip(run / name / "rank_00000.safetensors")
    assert world(2).run(start_verified, flags(corpus, run), 2)[0][0] == (2, 16)
    assert (run / "iter_0000006.broken-2").is_dir()


def test_a_checkpoint_under_the_name_of_another_is_not_taken(corpus, run):
    shutil.rmtree(run / "iter_0000006")
    shutil.copytree(run / "iter_0000002", run / "iter_0000006")
    start = start_of(flags(corpus, run))
    assert start.folder == run / "iter_0000004"
    assert "iter_0000006 holds the checkpoint of iteration 2" in describe_fallback(start)[0]


def start_while_another_saves(rank: int, flags: str, run: str) -> str:
    """Plan a start, and let another run's checkpoint appear before it is settled."""
    inputs = open_inputs(parse(flags), 1)
    start = plan_start(inputs, 1)
    (Path(run) / TRACKER).write_text("6\n")
    with pytest.raises(CheckpointError) as error:
        verified_start(inputs, start, 1)
    return str(error.value)


def test_a_start_that_was_planned_while_another_run_saved_is_refused(world, corpus, run):
    (run / TRACKER).write_text("4\n")
    (message,) = world(1).run(start_while_another_saves, flags(corpus, run), str(run))
    assert "changed while this run was starting (latest checkpoint: 4, then 6)" in message


def test_no_checkpoint_fallback_makes_it_an_error_and_changes_nothing(world, corpus, run):
    flip(run / "iter_0000006" / "rank_00001.safetensors")
    extra = "--no-checkpoint-fallback"
    messages = world(2).run(start_verified, flags(corpus, run, extra), 2)
    assert messages[0] == messages[1]
    assert "iter_0000006/rank_00001.safetensors is damaged" in messages[0][0]
    (run / "iter_0000006" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing.*iter_0000004 is whole"):
        start_of(flags(corpus, run, extra))
    assert (run / TRACKER).read_text() == "6\n"


def test_a_run_without_any_whole_checkpoint_does_not_start_afresh(world, corpus, run):
    for folder in run.glob("iter_*"):
        flip(folder / "rank_00000.safetensors")
    (place, _), _ = world(2).run(start_verified, flags(corpus, run), 2)
    assert "holds no checkpoint that is whole" in place and "iter_0000006" in place
    assert len(list(run.glob("iter_???????"))) == 3
    for folder in run.glob("iter_*"):
        (folder / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match="holds no checkpoint that is whole"):
        start_of(flags(corpus, run))


@pytest.mark.parametrize("text", [b"", b"six", b"\xb6\n", b"600\n"])
def test_a_torn_tracker_counts_for_nothing_and_is_written_anew(world, corpus, run, text):
    (run / TRACKER).write_bytes(text)
    flip(run / "iter_0000006" / "rank_00000.safetensors")
    places = world(2).run(start_verified, flags(corpus, run), 2)
    assert [place for place, _ in places] == [(4, 32)] * 2
    assert (run / TRACKER).read_text() == "4\n"


def test_a_torn_tracker_alone_costs_a_warning(world, corpus, run):
    (run / TRACKER).write_bytes(b"si")
    with pytest.raises(CheckpointError, match="not the number of an iteration"):
        start_of(flags(corpus, run, "--no-checkpoint-fallback"))
    place, lines = world(1).run(start_verified, flags(corpus, run), 1)[0]
    assert place == (6, 48) and any("DAMAGED TRACKER" in line for line in lines)
    assert world(1).run(start_verified, flags(corpus, run), 1) == [((6, 48), [])]


def test_without_a_tracker_the_newest_whole_checkpoint_counts(corpus, run):
    (run / TRACKER).unlink()
    start = start_of(flags(corpus, run))
    assert start.folder == run / "iter_0000006"
    assert "taking the newest that is whole" in describe_fallback(start)[0]
    (run / "iter_0000006" / "metadata.json").unlink()
    assert start_of(flags(corpus, run)).folder == run / "iter_0000004"


def test_a_tracker_set_back_by_hand_is_obeyed_and_newer_checkpoints_do_not_count(
    world, corpus, run
):
    (run / TRACKER).write_text("4")
    flip(run / "iter_0000004" / "rank_00000.safetensors")
    place, lines = world(1).run(start_verified, flags(corpus, run), 1)[0]
    assert place == (2, 16)
    assert any("newer ones than that do not count" in line for line in lines)


def test_a_checkpoint_of_another_run_is_never_exchanged(world, corpus, run, tmp_path):
    own = tmp_path / "own"
    flip(run / "iter_0000006" / "rank_00000.safetensors")
    other = flags_of(corpus, own, f"--train-iters 8 --load {run} --finetune")
    (place, _), _ = world(2).run(start_verified, other, 2)
    assert "iter_0000006/rank_00000.safetensors is damaged" in place
    (run / "iter_0000006" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"iter_0000004 is whole: give that as --load"):
        start_of(other)
    one = flags_of(corpus, own, f"--train-iters 8 --load {run / 'iter_0000002'} --finetune")
    assert start_of(one).folder == run / "iter_0000002"
    (run / "iter_0000002" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match=r"iter_0000002/metadata\.json is missing"):
        start_of(one)
    assert (run / "iter_0000006").is_dir() and not list(run.glob("*.broken"))


def test_a_dry_run_says_what_a_start_would_do_and_does_not_do_it(corpus, run, capsys):
    cut(run / "iter_0000006" / "rank_00000.safetensors")
    before = sorted(run.rglob("*"))
    pretrain_gpt.main(["--dry-run", *flags(corpus, run).split()])
    printed = capsys.readouterr().out
    assert f"start      {run / 'iter_0000004'}, at step 4" in printed
    assert "warning    DAMAGED CHECKPOINT: " in printed and "2 steps are lost" in printed
    assert sorted(run.rglob("*")) == before
    assert (run / TRACKER).read_text() == "6\n"


def test_lengths_are_looked_at_without_reading_tensors(run):
    folder = run / "iter_0000006"
    assert find_flaw_by_length(folder) is None
    flip(folder / "rank_00000.safetensors")
    assert find_flaw_by_length(folder) is None
    cut(folder / "rank_00000.safetensors")
    assert "rank_00000.safetensors has" in find_flaw_by_length(folder)
    (folder / "rank_00000.safetensors").unlink()
    assert "rank_00000.safetensors is missing" in find_flaw_by_length(folder)
