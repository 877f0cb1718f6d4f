"""A run that spikes without end goes back to a checkpoint, leaves the samples out, and is the same when it is resumed."""

import json

import pytest
import torch

from megatron.checkpoint.reader import CheckpointReader
from megatron.errors import ConfigError, TrainingError
from megatron.training import rollback
from megatron.training.history.replay_plan import plan_replay
from megatron.training.history.trace import RunRecord, RunTrace, samples_of_step
from megatron.training.skipped import SkippedSamples
from tests.checkpoint.seal import seal
from tests.training.history.test_trace import save
from tests.training.runs import flags_of, parse, read_lines, read_metrics
from tests.training.test_spike import BATCH, tensors_of, train_with_bad_batches

PATIENCE, LAST = 3, 22
BAD = range(56, 88)  # of steps 15 to 22, had there been no other


def flags_for(corpus, save, extra=""):
    return flags_of(
        corpus,
        save,
        f"--global-batch-size {BATCH} --train-iters {LAST} --eval-iters 0 --loss-spike-window 8 --lr 3e-3 "
        f"--lr-warmup-iters 0 --loss-spike-policy rollback --loss-spike-patience {PATIENCE} --save-interval 4 "
        f"--log-interval {LAST} {extra}",
    )


def state_of(save) -> dict:
    return CheckpointReader.open(save / f"iter_{LAST:07d}").state


def rollbacks_of(save) -> list[dict]:
    return [line for line in read_lines(save) if "rollback_from" in line]


def assert_same_end(one, other):
    expected = tensors_of(other, LAST)
    for name, tensor in tensors_of(one, LAST).items():
        assert torch.equal(tensor, expected[name]), name
    assert state_of(one) == state_of(other)
    assert read_metrics(one)[0][LAST]["lm_loss"] == read_metrics(other)[0][LAST]["lm_loss"]


@pytest.fixture(scope="module")
def trained(world, corpus, tmp_path_factory):
    """A run that left a spike behind by going back twice."""
    save = tmp_path_factory.mktemp("rollback") / "run"
    flags = flags_for(corpus, save)
    assert world(1).run(train_with_bad_batches, flags, BAD) == [("finished", LAST)]
    return save


def test_the_run_goes_back_and_on_after_the_spike(trained):
    """Steps 15 to 17 are lost, which is known when 18 is queued; then 13 to 15, after the checkpoint of step 12."""
    state = state_of(trained)
    assert (state["iteration"], state["rollbacks"], state["optimizer_steps"]) == (LAST, 2, LAST)
    assert state["skipped"] == [{"after": 8, "start": 32, "stop": 88}]
    assert state["consumed_samples"] == LAST * BATCH + 88 - 32
    (line,) = rollbacks_of(trained)  # the first was forgotten with the steps after 8
    assert (line["iteration"], line["rollback_from"]) == (8, 16)
    assert (line["skipped_samples"], line["spike_samples"]) == ([32, 88], [72, 88])
    run = RunTrace(RunRecord.open(trained))
    documents = [span.document for span in run.trace("train", 72).spans]
    prefix = run.trace("train", 72).prefix
    assert line["spike_documents"][0] == f"{prefix}:{min(documents)}-{max(documents)}"
    assert len(line["spike_documents"]) == 88 - 72


def test_the_samples_of_steps_are_told_with_what_was_left_out(trained):
    expected = iter([*range(32), *range(88, 1000)])
    for step in range(1, LAST + 3):
        record = RunRecord.open(trained, step)
        numbers = samples_of_step(record, step, rank=None, world_size=None)
        assert numbers == [next(expected) for _ in range(BATCH)], step
    assert RunRecord.open(trained).skipped == (SkippedSamples(8, 32, 88),)
    plan = plan_replay(trained, 10, 1)
    assert (plan.first_step, plan.consumed_samples) == (9, 88)


@pytest.mark.parametrize("stop", [14, 17])
def test_a_run_stopped_before_the_decision_comes_to_the_same_end(
    world, corpus, trained, tmp_path, stop
):
    """The tracker names its last checkpoint also when the run has gone back behind it and is killed."""
    flags = flags_for(corpus, tmp_path / "run")
    world(1).run(train_with_bad_batches, f"{flags} --exit-interval {stop}", BAD)
    assert world(1).run(train_with_bad_batches, flags, BAD) == [("finished", LAST)]
    assert_same_end(tmp_path / "run", trained)


def test_a_damaged_checkpoint_is_passed_over(world, corpus, tmp_path):
    flags = flags_for(corpus, tmp_path / "run")
    world(1).run(train_with_bad_batches, f"{flags} --exit-interval 17", BAD)
    path = next((tmp_path / "run" / "iter_0000012").glob("rank_*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert world(1).run(train_with_bad_batches, flags, range(56, 72))[0][0] == "finished"
    (line,) = rollbacks_of(tmp_path / "run")
    assert (line["iteration"], line["rollback_from"]) == (8, 18)


def test_what_was_saved_in_the_spike_is_saved_again(world, corpus, tmp_path):
    """Step 16 is saved amid the spike; the run goes back to 12 and comes to 16 anew."""
    flags = flags_for(corpus, tmp_path / "run")
    world(1).run(train_with_bad_batches, flags, range(56, 72))
    (line,) = rollbacks_of(tmp_path / "run")
    assert (line["iteration"], line["rollback_from"]) == (12, 18)
    state = CheckpointReader.open(tmp_path / "run" / "iter_0000016").state
    assert state["skipped"] == [{"after": 12, "start": 48, "stop": 72}]


def test_a_checkpoint_of_steps_that_were_gone_back_from_tells_no_samples(corpus, tmp_path):
    """One of step 10 was saved by a signal before the run went back to 8; with it, batches would not add up."""
    config = parse(flags_for(corpus, tmp_path, "--global-batch-size 4"))
    save(tmp_path, config, [(8, 32), (10, 40), (12, 72)], world_size=1)
    path = tmp_path / "iter_0000012" / "state.json"
    state = json.loads(path.read_text())
    state["skipped"] = [{"after": 8, "start": 32, "stop": 56}]
    path.write_text(json.dumps(state))
    seal(path.parent)
    record = RunRecord.open(tmp_path, 11)
    assert record.saved == ((8, 32), (12, 72))
    assert samples_of_step(record, 11, rank=None, world_size=1) == list(range(64, 68))


def end_of(rank: int, flags: str, bad: range, limit: int) -> str:
    rollback.MAX_ROLLBACKS = limit
    try:
        return str(train_with_bad_batches(rank, flags, bad))
    except TrainingError as error:
        return str(error)
    finally:
        rollback.MAX_ROLLBACKS = 20


@pytest.mark.parametrize("layout", ["--use-distributed-optimizer", "PP2 in a V"])
def test_a_run_that_does_not_heal_ends_on_every_process_alike(world, corpus, tmp_path, layout):
    extra = "--pipeline-model-parallel-size 2 --pipeline-schedule zbv" if "PP" in layout else layout
    flags = flags_for(corpus, tmp_path / "run", extra)
    messages = world(2).run(end_of, flags, range(BAD.start, 10_000), 1)
    assert "steps 13 to 15 were all lost, and the run has gone back 1 times" in messages[0]
    assert messages[0] == messages[1]


def test_without_a_checkpoint_before_them_spikes_are_skipped(world, corpus, tmp_path):
    flags = flags_for(corpus, tmp_path / "run", "--save-interval 20")
    assert world(1).run(end_of, flags, BAD, 20)[0].startswith("('finished', ")
    assert rollbacks_of(tmp_path / "run") == []
    assert read_metrics(tmp_path / "run")[0][LAST]["skipped"] >= PATIENCE


def test_rollback_needs_checkpoints(corpus, tmp_path):
    with pytest.raises(ConfigError, match="give --save and --save-interval"):
        parse(flags_for(corpus, tmp_path, "--no-save-optim")).check(1)
    with pytest.raises(ConfigError, match="keep 2 or more"):
        parse(flags_for(corpus, tmp_path, "--keep-last 1")).check(1)
    parse(flags_for(corpus, tmp_path, "--keep-last 1 --save-retain-interval 8")).check(1)
    with pytest.raises(ConfigError, match=r"--loss-spike-patience 4 .* below half of .* 8"):
        parse(flags_for(corpus, tmp_path, "--loss-spike-patience 4")).check(1)
