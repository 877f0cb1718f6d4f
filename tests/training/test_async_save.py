"""Saving behind training changes nothing about either, and a save that fails costs a warning."""

from unittest import mock

import pytest

from megatron.checkpoint import save as saving
from megatron.errors import CheckpointError
from megatron.training import saver
from megatron.training.marks import Marks
from tests.training.runs import flags_of, parse, read_metrics, train_here

LAYOUT = "--tensor-model-parallel-size 2 --global-batch-size 2"
EVERY_TWO = "--train-iters 9 --save-interval 2 --eval-iters 0"


def test_every_checkpoint_is_bitwise_that_of_a_run_that_waits(world, corpus, tmp_path):
    for name, extra in {"waits": "", "goes on": "--async-save"}.items():
        folder = tmp_path / name.replace(" ", "_")
        flags = flags_of(corpus, folder, f"{LAYOUT} {EVERY_TWO} {extra}")
        assert world(2).run(train_here, flags) == ["finished"] * 2
    waits, goes_on = tmp_path / "waits", tmp_path / "goes_on"
    folders = sorted(path.name for path in waits.glob("iter_*"))
    assert folders == [f"iter_000000{number}" for number in (2, 4, 6, 8, 9)]
    assert sorted(path.name for path in goes_on.glob("iter_*")) == folders
    for folder in folders:
        for rank in range(2):
            file = f"{folder}/rank_0000{rank}.safetensors"
            assert (waits / file).read_bytes() == (goes_on / file).read_bytes(), file
    losses = [[row["lm_loss"] for row in read_metrics(run)[0].values()] for run in (waits, goes_on)]
    assert losses[0] == losses[1]
    assert (goes_on / "latest_checkpointed_iteration.txt").read_text() == "9\n"


def test_it_goes_on_after_it_was_stopped_and_saves_at_each_step(world, corpus, tmp_path):
    extra = f"{LAYOUT} --train-iters 6 --save-interval 1 --eval-iters 0 --async-save"
    flags = flags_of(corpus, tmp_path / "parts", extra)
    assert world(2).run(train_here, f"{flags} --exit-interval 4") == ["stopped"] * 2
    assert world(2).run(train_here, flags) == ["finished"] * 2
    assert world(2).run(train_here, flags_of(corpus, tmp_path / "whole", extra)) == ["finished"] * 2
    for number in range(1, 7):
        file = f"iter_000000{number}/rank_00001.safetensors"
        first, second = tmp_path / "parts" / file, tmp_path / "whole" / file
        assert first.read_bytes() == second.read_bytes(), file


def train_with_failures(
    rank: int, flags: str, failing: tuple[int, ...]
) -> tuple[str, list[str], list[int]]:
    """Train while rank 1 cannot write its part of some iterations; give the outcome, warnings and saved steps."""
    real, warnings, saved = saving.write_part, [], []

    def write_part(side, plan, values):
        if rank == 1 and side.iteration in failing:
            raise CheckpointError("no space; make room")
        return real(side, plan, values)

    def note(message):
        if message.startswith("saved "):
            saved.append(int(message.split("iter_")[1][:7]))

    with (
        mock.patch("megatron.checkpoint.save.write_part", write_part),
        mock.patch("megatron.checkpoint.background.write_part", write_part),
        mock.patch.object(saver.logger, "warning", warnings.append),
        mock.patch.object(saver.logger, "info", note),
    ):
        try:
            outcome = train_here(rank, flags)
        except CheckpointError as error:
            outcome = str(error)
    return outcome, warnings, saved


@pytest.mark.parametrize("extra", ["", "--async-save"])
def test_a_failed_save_is_a_warning_and_the_next_interval_saves(world, corpus, tmp_path, extra):
    flags = flags_of(corpus, tmp_path, f"{LAYOUT} {EVERY_TWO} {extra}")
    results = world(2).run(train_with_failures, flags, (4, 6))
    assert [outcome for outcome, _, _ in results] == ["finished"] * 2
    assert results[0][2] == results[1][2] == [2, 8, 9]
    assert len(results[0][1]) == 2 and results[1][1] == []
    assert "NOT SAVED: iteration 4: no space; make room" in results[0][1][0]
    assert results[0][1][1].endswith("the newest whole checkpoint is iteration 2")
    names = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert names == ["iter_0000002", "iter_0000008", "iter_0000009"]


@pytest.mark.parametrize("extra", ["", "--async-save"])
@pytest.mark.parametrize(
    ("policy", "failing", "left"), [("--exit-on-failed-save", 4, [2]), ("", 9, [2, 4, 6, 8])]
)
def test_the_last_save_and_any_if_asked_for_end_every_process_alike(
    world, corpus, tmp_path, extra, policy, failing, left
):
    flags = flags_of(corpus, tmp_path, f"{LAYOUT} {EVERY_TWO} {extra} {policy}")
    results = world(2).run(train_with_failures, flags, (failing,))
    assert [outcome for outcome, _, _ in results] == ["no space; make room"] * 2
    assert results[0][2] == left
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == f"{left[-1]}\n"


@pytest.mark.parametrize("extra", ["", "--async-save"])
def test_a_run_keeps_its_last_checkpoints_and_those_at_an_interval(world, corpus, tmp_path, extra):
    policy = "--keep-last 2 --save-retain-interval 3"
    flags = flags_of(
        corpus,
        tmp_path,
        f"--train-iters 8 --global-batch-size 2 --save-interval 1 --eval-iters 0 {extra} {policy}",
    )
    assert world(2).run(train_here, flags) == ["finished"] * 2
    names = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert names == [f"iter_000000{number}" for number in (3, 6, 7, 8)]


def test_what_waits_for_a_disk_is_marked_as_saving_and_not_as_a_step(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron.training.saver.dist.get_rank", lambda: 1)
    marks, phases = Marks(), []
    config = parse(flags_of(corpus, tmp_path))
    ours = saver.RunSaver(config, None, None, marks, kernels={}, last_saved=0)
    ours._pending = mock.Mock(advance=lambda: phases.append(marks.current.phase) or tmp_path)
    marks.enter("step", 1, 0)
    ours.finish()
    assert phases == ["save"]
